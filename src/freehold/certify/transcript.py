"""What was asked and what came back, byte for byte: the only thing the judge sees.

Keys never get here: a request names which key it used (`auth`), and a key that a server sends back is struck out.
Request bodies beyond `LARGE` are kept as digest and length, because whoever verifies can make them again.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from freehold.certify import sse
from freehold.errors import FormatError

Auth = Literal["good", "bad", "none", "limited"]
AuthStyle = Literal["bearer", "x-api-key"]
LARGE = 32 << 10
REDACTED = b"[redacted]"


class Untestable(Exception):
    """What a check needs did not come: the check can't be made, which counts as failed."""

    def __init__(self, exchange: str, reason: str) -> None:
        super().__init__(reason)
        self.exchange = exchange
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as a scenario states it.

    Args:
        path: below the base URL, which ends in /v1.
        body: the exact bytes.
        headers: beyond content type, key and the dialect's own.
        hang_up: after how many portions of the body the client leaves; None = never.
    """

    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    auth: Auth = "good"
    style: AuthStyle = "bearer"
    hang_up: int | None = None

    def record(self) -> dict[str, Any]:
        """As kept in the transcript."""
        body: Any = _kept(self.body)
        if len(self.body) > LARGE:
            body = {"sha256": hashlib.sha256(self.body).hexdigest(), "bytes": len(self.body)}
        return {
            "method": self.method, "path": self.path, "headers": [list(pair) for pair in self.headers],
            "auth": self.auth, "style": self.style, "hang_up": self.hang_up, "body": body,
        }  # fmt: skip

    @property
    def json(self) -> Any:
        """The body that was sent, parsed; None where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


@dataclass(frozen=True)
class Answer:
    """One response, or how none came.

    Args:
        status: 0 when there was none.
        portions: microseconds since the request was sent, and the body's bytes as they arrived then.
        end: "complete", "hung up" (by us), "cut" (by the server, before its end), "timeout", "no answer".
    """

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    portions: tuple[tuple[int, bytes], ...] = ()
    end: str = "no answer"
    took: int = 0

    @cached_property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(data for _, data in self.portions)

    def record(self) -> dict[str, Any]:
        """As kept in the transcript."""
        return {
            "status": self.status, "headers": [list(pair) for pair in self.headers],
            "portions": [[at, _kept(data)] for at, data in self.portions], "end": self.end, "took_us": self.took,
        }  # fmt: skip

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Answer:
        """From the transcript.

        Raises:
            FormatError: it is not one.
        """
        try:
            headers = tuple((str(name), str(value)) for name, value in record["headers"])
            portions = tuple((int(at), _bytes(data)) for at, data in record["portions"])
            return cls(int(record["status"]), headers, portions, str(record["end"]), int(record["took_us"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"a broken answer in the transcript: {error!r}") from None


def _kept(data: bytes) -> Any:
    """Text where bytes are text, else base64 under a name."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _bytes(kept: Any) -> bytes:
    return kept.encode() if isinstance(kept, str) else base64.b64decode(kept["base64"], validate=True)


@dataclass(frozen=True)
class Exchange:
    """A request, its answer, and the key (`scenario/name`) under which the judge finds them."""

    key: str
    call: Call
    answer: Answer
    _memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def record(self) -> dict[str, Any]:
        """As kept in the transcript."""
        return {"key": self.key, "request": self.call.record(), "response": self.answer.record()}

    @property
    def status(self) -> int:
        """HTTP status; 0 when no answer came."""
        return self.answer.status

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        return next((value for key, value in self.answer.headers if key.lower() == name), None)

    @property
    def media_type(self) -> str:
        """The content type without parameters."""
        return (self.header("content-type") or "").partition(";")[0].strip().lower()

    @property
    def json(self) -> Any:
        """The body as JSON.

        Raises:
            Untestable: it is none.
        """
        if "json" not in self._memo:
            try:
                self._memo["json"] = json.loads(self.answer.body.decode("utf-8"))
            except ValueError:
                raise Untestable(self.key, f"expected a JSON body, found {self.describe()}") from None
        return self._memo["json"]

    @property
    def good(self) -> dict[str, Any]:
        """The JSON object of a successful answer.

        Raises:
            Untestable: it was not successful, or no object.
        """
        if self.status != 200 or self.answer.end != "complete":
            raise Untestable(self.key, f"expected a successful answer, found {self.describe()}")
        if not isinstance(self.json, dict):
            raise Untestable(self.key, f"expected a JSON object, found {self.describe()}")
        return self.json

    @property
    def events(self) -> list[sse.Event]:
        """The events of a successful stream.

        Raises:
            Untestable: it was none, or is no UTF-8.
        """
        if "events" not in self._memo:
            if self.status != 200 or self.answer.end not in ("complete", "hung up"):
                raise Untestable(self.key, f"expected a complete stream, found {self.describe()}")
            try:
                self._memo["events"] = sse.parse(data for _, data in self.answer.portions)
            except UnicodeDecodeError:
                raise Untestable(self.key, "the stream is not UTF-8") from None
        found: list[sse.Event] = self._memo["events"]
        return found

    @property
    def data(self) -> list[dict[str, Any]]:
        """The JSON objects of a stream, without `[DONE]`.

        Raises:
            Untestable: an event is no JSON object.
        """
        found = []
        for event in self.events:
            if event.data == "[DONE]":
                continue
            try:
                value = json.loads(event.data)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise Untestable(self.key, f"expected a JSON object in each event, found {event.data[:80]!r}")
            found.append(value)
        if not found:
            raise Untestable(self.key, f"expected events, found {self.describe()}")
        return found

    def describe(self) -> str:
        """Status, end and the beginning of the body, on one line."""
        text = " ".join(self.answer.body[:160].decode("utf-8", "replace").split())
        return f"{self.status or 'no status'} ({self.answer.end}) {text}"
