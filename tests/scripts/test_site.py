"""Links of the documents on the site: those that leave docs/ lead to a page of the site, or become plain text."""

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.scripts import script

site_hooks = script("site")


@pytest.mark.parametrize(
    ("markdown", "source", "wanted"),
    [
        ("[a](../../README.md#results)", "docs/results/grid.md", "[a](../readme.md#results)"),
        ("[a](../README.md)", "docs/faq.md", "[a](readme.md)"),
        ("[a](metrics.md#names)", "docs/faq.md", "[a](metrics.md#names)"),
        ("[code](../examples/extend_with_terms.py)", "docs/python.md", "`extend_with_terms.py`"),
        ("[a](CONTRIBUTING.md) [b](docs/log.md)", "", "[a](contributing.md) [b](docs/log.md)"),
        (
            "![p](results/p.png) [q](https://x.y/z) [r](#here)",
            "docs/a.md",
            "![p](results/p.png) [q](https://x.y/z) [r](#here)",
        ),
    ],
)
def test_links_on_the_site(markdown: str, source: str, wanted: str) -> None:
    assert site_hooks.site_links(markdown, source) == wanted


def test_every_document_that_the_order_names_first_is_there() -> None:
    start = dict(site_hooks.ORDER)["Start"]
    assert all((ROOT / "docs" / f"{name}.md").is_file() for name in start if name != "readme")
