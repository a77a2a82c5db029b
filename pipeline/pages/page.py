"""A template and values in, one self-contained HTML page out: no network, no server.

Prompts and file names come from outside. The template engine escapes every value, characters that
would reorder or hide text are spelled out, and the page's own policy allows only the script that
belongs to it and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.files import write_file
from pipeline.shown import lines, one_line

_HERE = Path(__file__).parent


def render(template: str, script: str | None = None, **values: Any) -> str:
    """Render a template of this folder with the values.

    Args:
        template: name of the `.html` file.
        script: name of the `.js` file to embed; None: the page runs no script.
        values: for the template, which escapes them.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    engine = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {"visible": one_line, "lines": lines}
    code = "" if script is None else (_HERE / script).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return engine.get_template(template).render(
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        code=code,
        policy=f"script-src 'sha256-{digest}'" if code else "script-src 'none'",
        made_by=f"aigi {__version__}",
        **values,
    )


def write(page: str, path: Path) -> None:
    """Write a page whole or not at all.

    Raises:
        AigiError: it cannot be written there.
    """
    write_file(path, page.encode())
