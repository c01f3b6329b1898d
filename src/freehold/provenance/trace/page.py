"""A report as one HTML page that needs nothing else: no script, no font, no picture from anywhere.

Everything from the query and the corpus is text of strangers: the template escapes whatever it is given, and a policy
in the page forbids scripts and requests should anything slip through. Knows no index.
"""

from __future__ import annotations

import functools
from importlib.resources import files

import jinja2

from freehold.provenance.trace.report import Report, stretches


def page(report: Report) -> str:
    """The report as HTML."""
    return _template().render(report=report, stretches=stretches(report))


@functools.cache
def _template() -> jinja2.Template:
    source = files("freehold.provenance.trace").joinpath("page.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = visible
    return environment.from_string(source)


def visible(text: str) -> str:
    """Text whose control and direction characters are seen instead of obeyed; line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
