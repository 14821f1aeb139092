"""Pictures as SVG inside the page: harmless, with ids of their own, described in words, legible on light and dark.

Colours become CSS variables of the page (``templates/style.css``): black becomes the text's colour, white the paper's,
the palette its light or dark shade.
"""

import io
import re
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from kldistill.interpret import style
from kldistill.interpret.style import GRID, INK, MUTED, STYLE
from kldistill.runtime.errors import KldistillError

# The page has a lighter shade of each for the dark.
PALETTE = {colour.lower(): name for name, colour in style.PALETTE.items()} | {
    # matplotlib's own cycle, in pictures that leave colours to it
    "#1f77b4": "blue",
    "#ff7f0e": "vermilion",
    "#2ca02c": "green",
    "#d62728": "vermilion",
    "#9467bd": "purple",
}
PAPER = "#ffffff"
_NEUTRAL = {
    INK: "ink",
    "black": "ink",
    "#262626": "ink",
    PAPER: "paper",
    "white": "paper",
    MUTED: "muted",
    GRID: "grid",
}
_VARIABLES = {colour: f"var(--{name})" for colour, name in (_NEUTRAL | PALETTE).items()}
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b|\b(?:black|white)\b")

_COLUMN = 520  # pixels
_LENGTH = re.compile(r"([0-9.]+)(?:pt|px)?")

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)
_ELEMENTS = {
    *("svg", "g", "defs", "path", "use", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text", "tspan"),
    *("clipPath", "image", "title", "desc", "linearGradient", "radialGradient", "stop", "pattern", "mask", "marker"),
}
_PAINTED = ("style", "fill", "stroke", "clip-path", "mask", "marker-start", "marker-mid", "marker-end", "stop-color")
_REFERENCE = re.compile(r"url\(\s*['\"]?#([^'\")]*)['\"]?\s*\)", flags=re.IGNORECASE)
_OUTSIDE = re.compile(r"url\((?!#)|@import|expression\(", flags=re.IGNORECASE)
_IMAGE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=\s]*")

# As the pictures of interpret, on the page's own paper. Text stays text: it can be searched, copied and read aloud.
RC: dict[Any, Any] = STYLE | dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none")


class PictureError(KldistillError):
    """A picture that cannot go into a page."""


def of_figure(figure: Figure, name: str, alt: str) -> Markup:
    """A matplotlib figure as inline SVG.

    Args:
        name: unique in the page; starts the picture's ids.
        alt: what the picture shows, for those who cannot see it.
    """
    text = io.StringIO()
    with rc_context(RC):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return inline(text.getvalue(), name, alt)


def inline(text: str, name: str, alt: str) -> Markup:
    """An SVG file's content as inline SVG of the page.

    Elements that are no drawing (scripts, foreign objects), event handlers, and references that lead out of the picture
    are left out.

    Raises:
        PictureError: the text is no SVG.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise PictureError(f"{name}: no SVG that can be read: {error}. Build the picture again.") from error
    if root.tag != f"{{{SVG}}}svg":
        raise PictureError(f"{name}: no SVG, but {root.tag!r}. Build the picture again.")
    _clean(root, name)
    for child in [child for child in root if child.tag == f"{{{SVG}}}title"]:
        root.remove(child)
    title = ElementTree.Element(f"{{{SVG}}}title", {"id": f"{name}-title"})
    title.text = alt
    root.insert(0, title)
    _own_size(root)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title", "fill": "currentColor"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def is_wide(svg: str) -> bool:
    """Whether an inlined picture is too wide for a column, or for a phone without scrolling."""
    width = re.search(r'style="width: (\d+)px', svg)
    return width is not None and int(width.group(1)) > _COLUMN


def _clean(element: ElementTree.Element, name: str) -> None:
    """Keep drawing only, give ids the picture's name, and colours the page's variables."""
    for child in list(element):
        if (
            not isinstance(child.tag, str)
            or child.tag.rpartition("}")[2] not in _ELEMENTS
            or not child.tag.startswith(f"{{{SVG}}}")
        ):
            element.remove(child)
        else:
            _clean(child, name)
    for key, value in list(element.attrib.items()):
        local = key.rpartition("}")[2]
        if local.lower().startswith("on") or (local == "href" and not _harmless(value)):
            del element.attrib[key]
        elif local == "id":
            element.set(key, f"{name}-{value}")
        elif local == "href" and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        elif local in _PAINTED:
            value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
            element.set(key, _COLOUR.sub(_themed, "none" if _OUTSIDE.search(value) else value))


def _harmless(reference: str) -> bool:
    return reference.startswith("#") or _IMAGE.fullmatch(reference) is not None


def _themed(match: re.Match[str]) -> str:
    return _VARIABLES.get(match.group().lower(), match.group())


def _own_size(root: ElementTree.Element) -> None:
    """Make the picture as wide as its text needs; it shrinks with the page, and its box keeps its shape."""
    width, height = (_LENGTH.fullmatch(root.attrib.pop(key, "")) for key in ("width", "height"))
    if width and height and "viewBox" not in root.attrib:
        root.set("viewBox", f"0 0 {width.group(1)} {height.group(1)}")
    root.set("class", "figure")
    # Lengths are matplotlib's points; a little larger, its 10 point text looks like the page's small text.
    size = f"width: {1.3 * float(width.group(1)):.0f}px; " if width else ""
    root.set("style", f"{size}stroke-linejoin: round")
