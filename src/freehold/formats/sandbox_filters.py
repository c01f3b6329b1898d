"""The filters templates may use: Jinja's harmless ones, and bounded versions of those that can blow up.

`tojson` follows transformers. Knows nothing of templates as such.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
import jinja2.filters
from jinja2.runtime import Context

from freehold.formats.sandbox_meter import POINTER, Counted, LimitError, check_replace, current


def metered_filter(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, charged for what it is given and what it makes.

    `pass_context` also keeps Jinja from computing it while compiling, outside of any meter.
    """
    passes = getattr(filter, "jinja_pass_arg", None)

    @jinja2.pass_context
    def charged(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter = current()
        for given in (value, *args, *kwargs.values()):
            meter.step(1 + meter.measure(given) // (16 * POINTER))
        if name in _SPREADING and isinstance(value, str):
            meter.expect(len(value) * POINTER // 4)
        if passes is None:
            made = filter(value, *args, **kwargs)
        else:
            first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[
                passes.name
            ]
            made = filter(first, value, *args, **kwargs)
        return meter.made(made)

    return charged


_SPREADING = frozenset(
    ("list", "sort", "unique", "join", "map", "select", "reject", "batch", "groupby", "reverse", "sum")
)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as transformers writes it in templates: Unicode kept, no HTML escapes."""
    if indent is not None and not 0 <= int(indent) <= 16:
        raise LimitError("an indent of more than 16")
    meter = current()
    meter.expect((1 + (indent or 0)) * meter.measure(value))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    lines = str(text).count("\n") + 1
    current().expect(len(str(text)) + lines * (width if isinstance(width, int) else len(width)))
    return jinja2.filters.do_indent(str(text), width, first, blank)


@jinja2.pass_eval_context
def _join(context: Any, values: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        values = map(jinja2.filters.make_attrgetter(context.environment, attribute), values)
    pieces: list[str] = []
    for value in Counted(values):
        if pieces:
            pieces.append(str(d))
        pieces.append(current().text(value))
    return current().join(pieces)


def _sum(values: Iterable[Any], start: float = 0) -> float:
    total = start
    for value in Counted(values):
        if not isinstance(value, (int, float)):
            raise LimitError("sum of something else than numbers")
        total += value
    return total


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    check_replace(str(text), str(old), str(new))
    return str(text).replace(str(old), str(new), count)


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if not -100 <= precision <= 100:
        raise LimitError("a precision of more than 100")
    return jinja2.filters.do_round(value, precision, method)


def _text(value: Any) -> str:
    """`string` and `safe`: nothing is escaped here, so there is nothing to mark as safe."""
    return current().text(value)


def _escape(value: Any) -> str:
    text = current().text(value)
    current().expect(6 * len(text))
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;")):
        text = text.replace(character, entity)
    return text


_TAKEN = (
    "abs",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "first",
    "float",
    "groupby",
    "int",
    "items",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
    "sort",
    "title",
    "trim",
    "unique",
    "upper",
    "wordcount",
)
FILTERS: dict[str, Callable[..., Any]] = {name: jinja2.filters.FILTERS[name] for name in _TAKEN} | {
    "e": _escape,
    "escape": _escape,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "safe": _text,
    "string": _text,
    "sum": _sum,
    "tojson": _tojson,
}
