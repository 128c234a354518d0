"""Pages from templates: everything escaped, and a policy that lets a page run its own scripts and load nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from orchestrator.views import one_line, without_markup

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **context: Any) -> str:
    """The template filled in; text is escaped in those whose name has `.html`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = markdown
    return environment.get_template(template).render(**context)


def page(template: str, *, figures: Mapping[str, Any], **context: Any) -> str:
    """A page that opens offline. `figures`: name -> plotly figure; without any, plotly.js is left out.

    Its content policy names the scripts by their digests, so that nothing else runs, whatever a study's text holds.
    """
    from orchestrator.charts import plotly_js

    scripts = [plotly_js(), (TEMPLATES / "charts.js").read_text(encoding="utf-8")] if figures else []
    return render(
        template,
        figures=figures,
        scripts=scripts,
        policy=content_policy(scripts),
        style=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        **context,
    )


def content_policy(scripts: Sequence[str]) -> str:
    """No address of any kind but data inside the page; only these scripts."""
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in scripts) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def markdown(text: object) -> str:
    """Text as Markdown (CommonMark and GitHub's) shows it literally, in one line.

    With backslashes, as people read the file as it is too.

    >>> markdown("1. a_b"), markdown("- see https://a.b"), markdown("0.5 (+1)")
    ('1\\\\. a\\\\_b', '\\\\- see https:\\\\//a.b', '0.5 (+1)')
    """
    return without_markup(one_line(str(text)), lambda special: f"\\{special}")
