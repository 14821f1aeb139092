"""Hooks of mkdocs (mkdocs.yml): README and CONTRIBUTING as pages of the site, and the order of the pages."""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md"}  # in the project's root, and on the site
ORDER: list[tuple[str, list[str]]] = [
    ("Start", ["index", "readme", "tutorial", "choosing", "chat", "memory", "cluster", "troubleshooting", "faq"]),
    ("Reference", ["config", "metrics", "report", "wandb", "serving", "python", "sandbox", "models"]),
    ("Method", ["method", "interpretability", "comparison", "log"]),
    ("Results", ["results/quickstart", "results/grid", "results/tasks", "tuning", "performance", "reliability"]),
    ("Project", ["contributing"]),
]


def on_files(files: Any, config: Any) -> Any:
    """Add the two documents that stand in the project's root."""
    from mkdocs.structure.files import File

    for source, target in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=re.sub(r"\]\(docs/", "](", site_links(text, ""))))
    present = {file.src_uri for file in files.documentation_pages()}
    nav, named = [], set()
    for title, names in ORDER:
        pages = [f"{name}.md" for name in names if f"{name}.md" in present]
        named |= set(pages)
        nav.append({title: pages})
    rest = sorted(present - named)
    config["nav"] = [*nav, {"More": rest}] if rest else nav
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to what stands outside docs/ lead to its page, or become plain text where it has none."""
    return markdown if page.file.src_uri in PAGES.values() else site_links(markdown, "docs/" + page.file.src_uri)


def site_links(markdown: str, source: str) -> str:
    """``markdown`` of the file ``source`` (its path in the project) with its links as the site needs them."""

    def led(match: re.Match[str]) -> str:
        text, path, anchor = match[1], match[2], match[3] or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if target in PAGES:
            here = posixpath.dirname(source.removeprefix("docs/"))
            return f"[{text}]({posixpath.relpath(PAGES[target], here or '.')}{anchor})"
        return match[0] if target.startswith("docs/") else f"`{path.rsplit('/', 1)[-1]}`"

    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)", led, markdown)
