"""What several groups need: ways into answers that end in Untestable instead of KeyError, shapes, and joined streams."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from typing import Any

import jsonschema
from jsonschema import Draft202012Validator

from freehold.certify.draw import Draw
from freehold.certify.evidence import Evidence, expect
from freehold.certify.requirements import shape
from freehold.certify.transcript import Exchange, Untestable
from freehold.certify.verdict import Trial

NONCE = 1e-6
"""How often chance says a drawn word: far more often than it does."""
TRIES = 5
MOST, ENOUGH = 10, 2
"""A word that is to come back is drawn anew until it came back twice, ten times at most: weak models need the tries."""


def echo(word: str) -> str:
    """A prompt that any model can follow."""
    return f"Please say the word {word}."


def told(word: str, number: int) -> str:
    """The same wish in two forms, because a weak model may be deaf to one."""
    return f"The code word is {word}. What is the code word?" if number % 2 else echo(word)


async def until_heard(
    make: Callable[[int], Awaitable[Exchange]],
    word: Callable[[int], str],
    text: Callable[[Exchange], str],
    *,
    least: int = 3,
) -> None:
    """Makes numbered exchanges until a word came back often enough, at least `least` and at most MOST."""
    heard = 0
    for i in range(MOST):
        heard += word(i).lower() in text(await make(i)).lower()
        if heard >= ENOUGH and i + 1 >= least:
            return


def dig(x: Exchange, value: Any, *path: str | int) -> Any:
    """A value inside another.

    Raises:
        Untestable: there is none; names the first step that is missing.
    """
    where = "$"
    for step in path:
        where += f"[{step}]" if isinstance(step, int) else f".{step}"
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            raise Untestable(x.key, f"nothing at {where}") from None
    return value


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(shape(name))


def shaped(x: Exchange, value: Any, name: str, path: str = "$") -> Trial:
    """Whether a value is the dialect's object of that name."""
    error = jsonschema.exceptions.best_match(_validator(name).iter_errors(value))
    if error is None:
        return Trial(True, x.key)
    where = path + error.json_path.removeprefix("$")
    return expect(False, x, where, f"{name}: {error.message[:120]}", error.instance)


SHAPES = {"/chat/completions": ("chat", "chat_chunk"), "/responses": ("response", "response_event"),
          "/messages": ("message", "message_event")}  # fmt: skip


def malformed(x: Exchange) -> Trial | None:
    """What is wrong with the shape of an answer, if anything: the first thing."""
    path, asked = x.call.path, x.call.json
    try:
        if x.status != 200:
            found = shaped(x, x.json, "anthropic_error" if path.startswith("/messages") else "openai_error")
        elif path not in SHAPES:
            found = shaped(x, x.json, "models" if path == "/models" else "object")
        elif isinstance(asked, dict) and asked.get("stream"):
            events = enumerate(x.data)
            found = next(
                (t for i, d in events if not (t := shaped(x, d, SHAPES[path][1], f"$[{i}]")).good), Trial(True)
            )
        else:
            found = shaped(x, x.good, SHAPES[path][0])
    except Untestable as reason:
        return Trial(False, x.key, "$", "an answer that can be judged", reason.reason)
    return None if found.good else found


def fits(x: Exchange, text: Any, schema: dict[str, Any], path: str) -> Trial:
    """Whether a text is JSON that a schema allows."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return expect(False, x, path, "JSON", text)
    error = jsonschema.exceptions.best_match(Draft202012Validator(schema).iter_errors(value))
    return expect(error is None, x, path, f"an instance of the schema ({error.message[:90] if error else ''})", text)


def text_of(x: Exchange) -> str:
    """The content of a chat answer, whole or streamed; "" where there is none."""
    if x.call.json.get("stream"):
        return "".join(delta.get("content") or "" for delta in deltas(x))
    return str(dig(x, x.good, "choices", 0, "message", "content") or "")


def finish_of(x: Exchange) -> str | None:
    """The finish reason of a chat answer, whole or streamed."""
    if not x.call.json.get("stream"):
        found: str | None = dig(x, x.good, "choices", 0, "finish_reason")
        return found
    reasons = [choice.get("finish_reason") for choice in choices(x)]
    return next((reason for reason in reasons if reason), None)


def choices(x: Exchange) -> list[dict[str, Any]]:
    """The choices of all chunks of a chat stream."""
    return [choice for chunk in x.data for choice in chunk.get("choices") or [] if isinstance(choice, dict)]


def deltas(x: Exchange) -> list[dict[str, Any]]:
    """The deltas of all chunks of a chat stream."""
    return [choice.get("delta") or {} for choice in choices(x)]


def calls_of(x: Exchange) -> list[dict[str, Any]]:
    """The tool calls of a chat answer as {index, id, name, arguments}, whole or streamed."""
    if not x.call.json.get("stream"):
        found = dig(x, x.good, "choices", 0, "message").get("tool_calls") or []
        return [
            {
                "index": i,
                "id": c.get("id"),
                "name": dig(x, c, "function", "name"),
                "arguments": dig(x, c, "function", "arguments"),
            }
            for i, c in enumerate(found)
        ]
    joined: dict[Any, dict[str, Any]] = {}
    for delta in deltas(x):
        for piece in delta.get("tool_calls") or []:
            call = joined.setdefault(
                piece.get("index"), {"index": piece.get("index"), "id": None, "name": "", "arguments": ""}
            )
            function = piece.get("function") or {}
            call["id"] = call["id"] or piece.get("id")
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""
    return list(joined.values())


def usage_of(x: Exchange) -> dict[str, Any]:
    """The usage of a chat answer, whole or streamed.

    Raises:
        Untestable: there is none.
    """
    bodies = x.data if x.call.json.get("stream") else [x.good]
    found = [body["usage"] for body in bodies if isinstance(body.get("usage"), dict)]
    if not found:
        raise Untestable(x.key, "no usage")
    usage: dict[str, Any] = found[-1]
    return usage


def function(name: str, schema: dict[str, Any], about: str = "") -> dict[str, Any]:
    """A chat tool."""
    return {
        "type": "function",
        "function": {"name": name, "description": about or f"Runs {name}.", "parameters": schema},
    }


def tool_name(draw: Draw, name: str) -> str:
    """A drawn name of a tool."""
    return f"find_{draw.word(name)}"


def said(x: Exchange, text: str, word: str, path: str) -> Trial:
    """Whether a word is in a text, in whatever case."""
    return expect(word.lower() in text.lower(), x, path, f"the word {word}", text)


def recalled(evidence: Evidence, scenario: str, word: str = "word") -> Iterable[Trial]:
    """For each chat exchange of a scenario, whether the drawn word came back."""
    draw = evidence.draw(scenario)
    for x in evidence.of(scenario):
        number = x.key.rpartition("/")[2]
        yield said(x, text_of(x), draw.word(f"{word}{number}"), "$.choices[0].message.content")


def middle_word(text: str) -> str:
    """A word from the middle of a text, to stop at."""
    words = text.split()
    return words[len(words) // 2] if len(words) > 3 else ""
