"""Turns a page's content into one self-contained HTML file: styles and script inlined, nothing fetched from anywhere.

Everything that comes from models, corpora or configurations is escaped by the templates. As a second wall, the page's
content security policy lets only its own script run, known by its hash, and lets nothing be loaded.
"""

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kldistill.runtime.files import write_text


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("kldistill.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = environment.loader.get_source  # type: ignore[union-attr]
    script = source(environment, "page.js")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = [
        "default-src 'none'",
        f"script-src 'sha256-{digest}'",
        "style-src 'unsafe-inline'",  # pictures style their parts
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    environment.globals |= {
        "style": Markup(source(environment, "style.css")[0]),
        "script": Markup(script),
        "policy": "; ".join(policy),
    }
    return environment


def render(template: str, **content: Any) -> str:
    """Fill a template of ``kldistill/report/templates``."""
    return _environment().get_template(template).render(content)


def write(path: Path, text: str) -> None:
    """Replace a page, or its content."""
    write_text(path, text, errors="replace")  # a lone surrogate, which JSON can hold, is no text that a file can hold


def as_json(content: Any) -> str:
    """Readable JSON."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
