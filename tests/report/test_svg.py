"""Figures inside a page: harmless, legible on light and dark, with ids of their own."""

from xml.etree import ElementTree

import numpy as np
import pytest

from kldistill.report.chart import new_axes
from kldistill.report.run.charts import binned, running_mean, thinned
from kldistill.report.svg import PictureError, inline, of_figure

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="100pt" height="50px">'


def drawn(inner: str) -> str:
    return inline(f"{HEAD}{inner}</svg>", "f1", "A figure & more")


@pytest.mark.parametrize(
    "inner",
    [
        "<script>alert(1)</script>",
        "<style>body { display: none }</style>",
        "<foreignObject><body xmlns='http://www.w3.org/1999/xhtml'><img src='x'/></body></foreignObject>",
        "<a href='https://example.org'><text>x</text></a>",
        "<img xmlns='http://www.w3.org/1999/xhtml' src='x'/>",
        "<rect onload='alert(1)' ONCLICK='alert(1)'/>",
        "<image href='https://example.org/x.png'/>",
        "<image xlink:href='data:image/svg+xml;base64,PHN2Zy8+'/>",
        "<use xlink:href='javascript:alert(1)'/>",
        "<rect style='fill: url(https://example.org/x)'/>",
        "<rect fill='url(  \"//example.org/x\")'/>",
        "<set attributeName='href' to='javascript:alert(1)'/>",
        "<animate attributeName='x'/>",
    ],
)
def test_only_drawing_is_left(inner: str) -> None:
    text = drawn(inner)
    for harm in ("alert", "example.org", "javascript", "display", "xhtml", "PHN2Zy8", "animate"):
        assert harm not in text
    assert "A figure &amp; more" in text


def test_a_drawing_is_kept_and_themed() -> None:
    text = drawn(
        "<defs><clipPath id='c'><rect id='r'/></clipPath></defs>"
        "<path clip-path='url(#c)' style='fill: none; stroke: #0072B2'/><use xlink:href='#r' fill=\"url('#c')\"/>"
        "<text style='fill: #000000'>&lt;x&gt;</text><rect fill='#ffffff'/><rect fill='#123456'/>"
        "<image xlink:href='data:image/png;base64,AAAA'/>"
    )
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert root.get("viewBox") == "0 0 100 50"
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    assert ids == {"f1-title", "f1-c", "f1-r"}
    for part in ("url(#f1-c)", '"#f1-r"', "var(--blue)", "var(--ink)", "var(--paper)", "#123456", "&lt;x&gt;", "AAAA"):
        assert part in text, part
    assert "#0072B2" not in text


def test_what_is_no_svg_is_refused() -> None:
    with pytest.raises(PictureError, match="no SVG that can be read"):
        inline("<svg", "f1", "")
    with pytest.raises(PictureError, match="no SVG, but 'html'"):
        inline("<html/>", "f1", "")


def test_figures_of_matplotlib_are_the_same_every_time_and_themed() -> None:
    def draw() -> str:
        figure, axes = new_axes()
        axes.plot([0, 1], [0, 1], color="#0072B2", label="</text><script>alert(1)</script>")
        axes.legend()
        return of_figure(figure, "f2", "alt")

    assert draw() == draw()
    root = ElementTree.fromstring(draw())
    assert "script" not in {element.tag.rpartition("}")[2] for element in root.iter()}
    assert any(element.text == "</text><script>alert(1)</script>" for element in root.iter())
    assert "var(--blue)" in draw()
    assert "#000000" not in draw()
    assert "#ffffff" not in draw()


def test_long_curves_are_thinned_without_losing_their_course() -> None:
    x, y = thinned([(step, 2.0 * step) for step in range(10_000)])
    assert len(x) <= 400
    assert y == pytest.approx([2 * at for at in x])
    assert thinned([(1, 5.0), (2, 7.0)]) == ([1.0, 2.0], [5.0, 7.0])
    x = [1.0, 2.0, 3.0, 4.0]
    assert running_mean(x, [0.0, 3.0, 9.0, 6.0], 1) == ([1.5, 2.0, 3.0, 3.5], [1.5, 4.0, 6.0, 7.5])
    steps = [float(step) for step in range(100)]
    mean_x, mean_y = running_mean(steps, [5 - 0.03 * step for step in steps], 8)
    assert mean_y == pytest.approx([5 - 0.03 * step for step in mean_x]), "a straight line stays one"
    noisy = [*[1.0] * 99, 9.0]
    assert max(running_mean(steps, noisy, 8)[1]) < 2, "an odd last point does not turn the curve"


def test_bands_are_weighted_means() -> None:
    x, y = np.array([0.01, 0.011, 0.5]), np.array([0.0, 1.0, 0.7])
    centres, means = binned(x, y, np.array([3.0, 1.0, 1.0]), 0.01, n_bins=2)
    assert means == pytest.approx([0.25, 0.7])
    assert centres == pytest.approx([(3 * 0.01 + 0.011) / 4, 0.5])
