"""The door: request ids, keys, where a browser may come from, and one structured line in the log per request.

Pure ASGI around the application. Knows no dialect but how each says no; never logs a header or a body.
"""

from __future__ import annotations

import hmac
import logging
import time
import uuid
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freehold.errors import DatabaseError
from freehold.gateway.dialects.errors import INVALID, Envelope, envelope
from freehold.gateway.exchange import Record
from freehold.gateway.http import in_dialect
from freehold.gateway.logs import REQUEST_ID
from freehold.gateway.loopback import is_loopback
from freehold.gateway.virtual_keys import PREFIX, KeyRing

log = logging.getLogger("freehold.access")

OPEN_PATHS = frozenset({"/", "/health"})


class Door:
    """Lets requests in.

    Args:
        api_key: what clients must send as `Authorization: Bearer` or `x-api-key`; empty = no key, loopback only.
        ring: virtual keys, which open the door too; once there was one, everybody needs a key, also when all are revoked.
    """

    def __init__(self, app: ASGIApp, *, api_key: str, ring: KeyRing | None = None) -> None:
        self._app = app
        self._key = api_key.encode()
        self._ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request: checked, answered, logged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        REQUEST_ID.set(request_id)  # uvicorn gives every request a context of its own
        status, began = 0, time.monotonic()

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["request-id"] = request_id  # as Anthropic's clients read it
            await send(message)

        try:
            refusal = await self._refusal(Headers(scope=scope), scope)
            if refusal is None:
                await self._app(scope, receive, reply)
            else:
                await send_envelope(refusal, scope, reply)
        finally:
            _write(scope, request_id, status, time.monotonic() - began)

    async def _refusal(self, headers: Headers, scope: Scope) -> Envelope | None:
        """Why a request may not come in; None when it may. Notes whose virtual key it carries, and its limits."""
        if scope["path"] in OPEN_PATHS:
            return None
        given = _given(headers)
        if self._ring is not None:
            self._ring.renew()
            if given.startswith(PREFIX) and not self._is_owners(given):
                return await self._check_virtual(self._ring, given, scope)
            try:
                if not self._key and self._ring.closes:
                    return _unknown_key() if given else _no_key()
            except DatabaseError as error:
                return envelope(error)
        if not self._key:
            return _check_browser(headers)
        if not given:
            return _no_key()
        return None if self._is_owners(given) else _unknown_key()

    def _is_owners(self, given: str) -> bool:
        return bool(self._key) and hmac.compare_digest(given.encode("latin-1", "replace"), self._key)

    async def _check_virtual(self, ring: KeyRing, given: str, scope: Scope) -> Envelope | None:
        try:
            key = await ring.look_up(given)
        except DatabaseError as error:
            return envelope(error)
        if key is None:
            return _unknown_key()
        if not scope["path"].startswith("/v1/"):
            return Envelope(403, "This key opens /v1 only.", INVALID, code="forbidden")
        scope["state"]["key_id"], scope["state"]["limits"] = key.id, key.limits
        return None


def _given(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _no_key() -> Envelope:
    text = "You didn't provide an API key. Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
    return Envelope(401, text, INVALID, headers={"www-authenticate": "Bearer"})


def _unknown_key() -> Envelope:
    text = "Incorrect API key provided."
    return Envelope(401, text, INVALID, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _check_browser(headers: Headers) -> Envelope | None:
    """Without a key, any web page the user opens could reach this server: only loopback names and origins may.

    A foreign Host is DNS rebinding, a foreign Origin a cross-site request.
    """
    for name, url in (("Host", "//" + headers.get("host", "")), ("Origin", headers.get("origin", ""))):
        if url and not is_loopback(_hostname(url)):
            text = f"{name} is not a loopback name. Set an api_key to serve other hosts."
            return Envelope(403, text, INVALID, code="forbidden_origin")
    return None


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


async def send_envelope(envelope: Envelope, scope: Scope, send: Send) -> None:
    """Sends an error as a whole response, in the dialect of its path."""
    status, body = in_dialect(envelope, scope["path"], Headers(scope=scope), scope["state"]["request_id"])
    headers = [(name.encode(), value.encode("latin-1")) for name, value in envelope.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _write(scope: Scope, request_id: str, status: int, seconds: float) -> None:
    record: Record | None = scope["state"].get("record")
    line: dict[str, object] = {
        "request_id": request_id,
        "method": scope["method"],
        "path": scope["path"],
        "status": status or None,
        "ms": round(seconds * 1000, 1),
    }
    if record is not None:
        line |= {
            "key": record.key_id or None,
            "backend": record.backend,
            "model": record.model,
            "reason": record.reason,
            "ttft_ms": None if record.ttft is None else round(record.ttft * 1000, 1),
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "finished": record.finished,
            "failure": record.failure,
        }
    log.info("%s", msgspec.json.encode(line).decode(), extra={"fields": line})
