"""Turns of a neutral conversation as Anthropic's messages.

Anthropic has no system turns, no turns of tools and no turn without content: systems go to the top, a tool's answer into
the user's turn, turns of one role that follow each other become one. Knows no HTTP and no parameters.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from freehold.gateway.conversation import FilePart, ImagePart, Part, Request, TextPart, ToolCall, Turn
from freehold.gateway.failures import CapabilityError

_DATA_URL = re.compile(
    r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+=-]+)*?)(;base64)?,(.*)", re.DOTALL | re.ASCII | re.IGNORECASE
)
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_ID_LENGTH = 64


class Translator:
    """The turns of one request."""

    def __init__(self, request: Request) -> None:
        self._turns = request.turns
        self._continue_from = request.continue_from

    def check(self) -> None:
        """Raises CapabilityError when an image or a document can't be sent."""
        for turn in self._turns:
            for part in turn.parts:
                if isinstance(part, ImagePart):
                    _source(part.url)
                elif isinstance(part, FilePart):
                    _document(part)

    def system(self) -> str:
        """What all system turns say, those in the middle of the conversation too."""
        return "\n\n".join(turn.text for turn in self._turns if turn.role == "system" and turn.text)

    def messages(self) -> list[dict[str, Any]]:
        """Messages with alternating roles; text that the answer begins with comes last."""
        merged: list[dict[str, Any]] = []
        for turn in self._turns:
            blocks = [] if turn.role == "system" else list(_blocks(turn))
            if not blocks:
                continue
            role = "assistant" if turn.role == "assistant" else "user"
            if merged and merged[-1]["role"] == role:
                merged[-1]["content"] += blocks
            else:
                merged.append({"role": role, "content": blocks})
        if self._continue_from:
            merged.append({"role": "assistant", "content": [{"type": "text", "text": self._continue_from}]})
        return [_plain(message) for message in merged]

    def lost(self) -> tuple[str, ...]:
        """Names what the messages leave out."""
        turns = self._turns
        lost = {
            "thinking": any(not (r.signature or r.redacted) for turn in turns for r in turn.reasoning),
            "messages[].name": any(turn.name is not None for turn in turns),
            "image_url.detail": any(isinstance(p, ImagePart) and p.detail for turn in turns for p in turn.parts),
            "tool_calls[].arguments": any(_object(c) is None for turn in turns for c in turn.tool_calls),
            "system.image_url": any(isinstance(p, ImagePart) for t in turns if t.role == "system" for p in t.parts),
            "system.file": any(isinstance(p, FilePart) for t in turns if t.role == "system" for p in t.parts),
        }
        return tuple(name for name, is_lost in lost.items() if is_lost)

    def in_foreign_loop(self) -> bool:
        """Whether a tool's answer is the last word, and the thinking that led to the call has no seal of Anthropic's."""
        for turn in reversed(self._turns):
            if turn.role == "assistant":
                return bool(turn.tool_calls) and not any(r.signature or r.redacted for r in turn.reasoning)
            if turn.role == "user":
                return False
        return False


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """Content that is a single text, as a string."""
    content = message["content"]
    if len(content) == 1 and content[0]["type"] == "text":
        return message | {"content": content[0]["text"]}
    return message


def _blocks(turn: Turn) -> Iterator[dict[str, Any]]:
    if turn.role == "tool":
        yield _result(turn)
        return
    for thought in turn.reasoning:
        if thought.redacted:
            yield {"type": "redacted_thinking", "data": thought.redacted}
        elif thought.signature:
            yield {"type": "thinking", "thinking": thought.text, "signature": thought.signature}
    yield from _contents(turn.parts)
    for call in turn.tool_calls:
        arguments = _object(call)
        given = msgspec.Raw(arguments) if arguments is not None else {"arguments": call.arguments}
        yield {"type": "tool_use", "id": _safe_id(call.id), "name": call.name, "input": given}


def _result(turn: Turn) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": _safe_id(turn.tool_call_id or "")}
    contents = list(_contents(turn.parts))
    if contents:
        plain = all(content["type"] == "text" for content in contents)
        block["content"] = turn.text if plain else contents
    return block | ({"is_error": True} if turn.failed else {})


def _contents(parts: tuple[Part, ...]) -> Iterator[dict[str, Any]]:
    """Text, images and documents; Anthropic refuses empty text."""
    for part in parts:
        if isinstance(part, TextPart):
            if part.text:
                yield {"type": "text", "text": part.text}
        elif isinstance(part, ImagePart):
            yield {"type": "image", "source": _source(part.url)}
        else:
            yield _document(part)


def _document(file: FilePart) -> dict[str, Any]:
    """A document. Anthropic reads PDF and plain text, and gives ids only to those who ask for its beta of files."""
    if file.file_id is not None:
        raise CapabilityError("A file by its id can't be sent to Anthropic: send its bytes or a URL.", param="file_id")
    source = _source(file.url, "a document", "file_data")
    if source["type"] == "base64" and source["media_type"].startswith("text/"):
        try:
            text = base64.b64decode(source["data"]).decode()
        except ValueError:
            raise CapabilityError("Expected a text document in base64 and UTF-8.", param="file_data") from None
        source = {"type": "text", "media_type": "text/plain", "data": text}
    elif source["type"] == "base64" and source["media_type"] != "application/pdf":
        found = source["media_type"]
        raise CapabilityError(f"Anthropic reads PDF and plain text, not '{found[:50]}'.", param="file_data")
    about = {"title": file.name, "context": file.context}
    return {"type": "document", "source": source} | {name: text for name, text in about.items() if text}


def _source(url: str, what: str = "an image", param: str = "image_url.url") -> dict[str, str]:
    """Bytes or address of an image or a document."""
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    found = _DATA_URL.fullmatch(url)
    if found is None or not found.group(1):
        raise CapabilityError(f"Expected {what} as an http(s) or data URL with a media type.", param=param)
    kind, _, encoded, data = found.groups()
    if not encoded:
        data = base64.b64encode(unquote_to_bytes(data)).decode()
    return {"type": "base64", "media_type": kind.lower(), "data": data}


def _object(call: ToolCall) -> bytes | None:
    """The arguments if they are a JSON object (none at all means an empty one), to be sent as they were written."""
    raw = call.arguments.strip() or "{}"
    try:
        return raw.encode() if isinstance(msgspec.json.decode(raw), dict) else None
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return None


def _safe_id(id_: str) -> str:
    """An id that Anthropic takes: others' may hold dots or colons. The same one always becomes the same."""
    if _ID.fullmatch(id_):
        return id_
    digest = hashlib.sha256(id_.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', id_)[: _ID_LENGTH - 17]}_{digest}"
