"""What a model may write, as grammars in llguidance's dialect of Lark: calls of the tools offered, or structured output.

Free text is free until the mark that opens a call; from there on only calls of the tools are left, with arguments that
follow their schemas. Texts only: the engine compiles them, and says what is wrong with a schema.

Objects are written on one line, as `json.dumps` does: a weak model that may write white space writes it for ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from freehold.gateway.conversation import Tool
from freehold.gateway.toolformats import marks
from freehold.gateway.toolformats.marks import Family

Mark = Callable[[str], int | None]
"""The id of a mark that is a control token, which no text in a grammar matches; None for one that is text."""

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_TEXT = "TEXT: /(.|\\n)*/\nSPACE: /[ \\n]{0,4}/\n"


@dataclass(frozen=True, slots=True)
class Opening:
    """What comes before the answer proper.

    Args:
        thinking: "open" when the prompt has opened it, "maybe" when the model may, "" when it doesn't think.
        begin: text that the answer must begin with.
    """

    thinking: str = ""
    begin: str = ""


def tool_calls(
    family: Family,
    tools: Sequence[Tool],
    mark: Mark,
    *,
    forced: bool,
    parallel: bool,
    opening: Opening,
    response_format: dict[str, Any] | None = None,
) -> str:
    """Text (or JSON, by a response format) or calls, with arguments by the tools' schemas.

    Args:
        forced: calls at once, no text.
        parallel: whether several calls may be made, where the family can.
    """
    write = _Writer(family, mark)
    calls = write.calls(tools, parallel=parallel and family.parallel)
    llama = family.kind == "llama"  # its mark may be missing: then calls are told from text by their first character
    direct = f"({write.first})? {calls}" if llama else f"{write.first} {calls}"
    if opening.begin:
        begin = _quote(opening.begin)
        free, later = f"{begin} TEXT", f"{begin} {write.text_and_mark()} {calls}"
    elif response_format is not None:
        free, later = _format(response_format), direct
    elif llama:
        free, later = "PLAIN", direct
    else:
        free, later = "TEXT", f"{write.text_and_mark()} {calls}"
    if forced:
        return write.grammar(later if opening.begin else direct, opening)
    return write.grammar(f"{free} | {later}", opening)


def structured(family: Family, response_format: dict[str, Any], mark: Mark, *, opening: Opening) -> str:
    """JSON, by a schema if the format (`json_object` or `json_schema`) has one."""
    return _Writer(family, mark).grammar(_format(response_format), opening)


def _format(response_format: dict[str, Any]) -> str:
    if response_format.get("type") == "json_object":
        return _json({"type": "object"}, strict=True)
    given = response_format.get("json_schema") or {}
    return _json(given.get("schema") or {"type": "object"}, strict=given.get("strict") is True)


class _Writer:
    """Rules of one grammar."""

    def __init__(self, family: Family, mark: Mark) -> None:
        self._family = family
        self._mark = mark
        self.rules: list[str] = []
        opening = {
            "hermes": marks.TOOL_OPEN,
            "llama": marks.PYTHON_TAG,
            "deepseek": marks.CALLS_BEGIN,
            "mistral": marks.MISTRAL_CALLS,
        }
        self.first = self.mark(opening[family.kind])

    def mark(self, text: str) -> str:
        """A mark as the grammar has to name it."""
        id = self._mark(text)
        return _quote(text) if id is None else f"<[{id}]>"

    def text_and_mark(self) -> str:
        """Free text up to the mark that opens calls."""
        if self.first.startswith("<["):
            return f"TEXT {self.first}"
        # lazy: from the mark on, what follows is a call and text no longer
        self.rules.append(f"upto[lazy]: TEXT {self.first}\n")
        return "upto"

    def calls(self, tools: Sequence[Tool], *, parallel: bool) -> str:
        """Everything after the mark that opens calls: a rule's name."""
        one = {"hermes": self._hermes, "llama": self._llama, "deepseek": self._deepseek, "mistral": self._mistral}
        self.rules.append("call: " + " | ".join(one[self._family.kind](tool) for tool in tools) + "\n")
        again = {
            "hermes": f'("\\n" {self.first} call)*',
            "llama": "",
            "deepseek": '("\\n" call)*',
            "mistral": f"({self.first} call)*" if self._family.variant else '(", " call)*',
        }
        body = f"call {again[self._family.kind] if parallel else ''}"
        if self._family.kind == "deepseek":
            body += " " + self.mark(marks.CALLS_END)
        if self._family.kind == "mistral" and not self._family.variant:
            body = f'"[" {body} "]"'
        self.rules.append(f"calls: {body}\n")
        return "calls"

    def grammar(self, body: str, opening: Opening) -> str:
        """The whole text."""
        start = f"start: {body}\n"
        if opening.thinking and self._family.thinking:
            start = self._thinking(body, opening.thinking)
        return "%llguidance {}\n" + start + "".join(self.rules) + "PLAIN: /([^{](.|\\n)*)?/\n" + _TEXT

    def _thinking(self, body: str, kind: str) -> str:
        assert self._family.thinking is not None  # noqa: S101  (checked by the caller)
        begin, end = map(self.mark, self._family.thinking)
        until = f"thought: TEXT {end}\n" if end.startswith("<[") else f"thought[lazy]: TEXT {end}\n"
        first = "thought SPACE answer" if kind == "open" else f"({begin} thought SPACE)? answer"
        return f"start: {first}\nanswer: {body}\n{until}"

    def _arguments(self, tool: Tool) -> str:
        return _json(tool.parameters or {"type": "object"}, strict=tool.strict is True)

    def _object(self, tool: Tool, key: str) -> str:
        """`{"name": ..., KEY: {...}}`."""
        head = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{key}": '
        return f'{_quote(head)} {self._arguments(tool)} "}}"'

    def _hermes(self, tool: Tool) -> str:
        return f'"\\n" {self._object(tool, "arguments")} "\\n" {self.mark(marks.TOOL_CLOSE)}'

    def _llama(self, tool: Tool) -> str:
        return self._object(tool, "parameters")

    def _deepseek(self, tool: Tool) -> str:
        begin, sep, end = map(self.mark, (marks.CALL_BEGIN, marks.CALL_SEP, marks.CALL_END))
        if self._family.variant != "fenced":
            return f"{begin} {_quote(tool.name)} {sep} {self._arguments(tool)} {end}"
        head = _quote(f"{tool.name}\n```json\n")
        return f'{begin} "function" {sep} {head} {self._arguments(tool)} "\\n```" {end}'

    def _mistral(self, tool: Tool) -> str:
        if self._family.variant != "named":
            return self._object(tool, "arguments")
        return f"{_quote(tool.name)} {self.mark(marks.MISTRAL_ARGS)} {self._arguments(tool)}"


def _json(schema: dict[str, Any], *, strict: bool) -> str:
    """A schema inside a grammar. One that is not strict may have keywords that nobody can enforce here."""
    options = _LAYOUT if strict else _LAYOUT | {"lenient": True}
    tight = _tightened(schema)
    return "%json " + json.dumps({**tight, "x-guidance": options}, ensure_ascii=False)


def _tightened(schema: Any) -> Any:
    """Objects with named properties get no others unless their schema speaks of them: weak models would not stop."""
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(out.get(key), dict):
            out[key] = {name: _tightened(value) for name, value in out[key].items()}
    if isinstance(out.get("items"), dict):
        out["items"] = _tightened(out["items"])
    for key in ("anyOf", "oneOf"):
        if isinstance(out.get(key), list):
            out[key] = [_tightened(value) for value in out[key]]
    combined = {"allOf", "anyOf", "oneOf", "$ref", "patternProperties", "unevaluatedProperties"} & out.keys()
    if isinstance(out.get("properties"), dict) and not combined:
        out.setdefault("additionalProperties", False)
    return out


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
