"""Which replies a fault concerns."""

from __future__ import annotations

from typing import Any

from freehold.certify.reference.http import Incoming, Outgoing

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def on(incoming: Incoming, path: str, **fields: Any) -> bool:
    """Whether a request is for this path and has these fields (... = has it at all)."""
    if incoming.path != path:
        return False
    body = incoming.body if isinstance(incoming.body, dict) else {}
    return all(
        body.get(name) is not None if value is ... else body.get(name) == value for name, value in fields.items()
    )


def whole(incoming: Incoming, reply: Outgoing, path: str, **fields: Any) -> bool:
    """Whether a reply is a whole, successful answer of this path."""
    return on(incoming, path, **fields) and reply.status == 200 and reply.events is None


def streamed(incoming: Incoming, reply: Outgoing, path: str = "", **fields: Any) -> bool:
    """Whether a reply is a stream (of this path)."""
    return reply.events is not None and (not path or on(incoming, path, **fields))
