"""A small hub on loopback that speaks the protocol of Hugging Face: listings, resolve, ranges, errors.

Faults are switched on by its attributes; every request is kept in `seen`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's own naming


@dataclass
class FakeHub:
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = COMMIT
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    listing_status: list[int] = field(default_factory=list)  # answered first, one each
    file_status: list[int] = field(default_factory=list)
    cuts: dict[str, list[int]] = field(default_factory=dict)  # file -> bytes sent before the connection breaks
    damaged: set[str] = field(default_factory=set)
    lies: dict[str, Any] = field(default_factory=dict)  # overrides of listing entries, by file
    listing_override: bytes | None = None
    gated: bool = False
    needs_token: str | None = None
    ignores_ranges: bool = False
    wrong_ranges: bool = False
    retry_after: str | None = None
    elsewhere: str | None = None  # large files are redirected there
    address: str = ""

    def entry(self, name: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_digest(content)}
        if name.endswith((".safetensors", ".gguf", ".bin")):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        return entry | self.lies.get(name, {})

    def gets(self, part: str) -> list[dict[str, str]]:
        """Headers of every request whose path holds `part`."""
        return [headers for _, path, headers in self.seen if part in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.seen.append(("GET", path, {key.lower(): value for key, value in self.headers.items()}))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self.listing(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.file(match[1], match[3])
        elif match := re.fullmatch(r"/moved/([^/]+/[^/]+)/(.+)", path):
            self.content(match[2], hub.repositories[match[1]][match[2]])
        else:
            self.answer(404)

    def listing(self, repo: str, revision: str) -> None:
        hub = self.hub
        if hub.listing_status:
            return self.answer(hub.listing_status.pop(0))
        if hub.needs_token and self.headers.get("Authorization") != f"Bearer {hub.needs_token}":
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        if repo not in hub.repositories:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", hub.commit, "v1"):
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        files = [hub.entry(name, content) for name, content in hub.repositories[repo].items()]
        body = hub.listing_override or json.dumps({"id": repo, "sha": hub.commit, "siblings": files}).encode()
        return self.answer(200, {}, body)

    def file(self, repo: str, name: str) -> None:
        hub = self.hub
        if hub.gated:
            return self.answer(403, {"X-Error-Code": "GatedRepo"})
        if hub.file_status:
            return self.answer(hub.file_status.pop(0))
        if hub.elsewhere and name.endswith(".safetensors"):
            return self.answer(302, {"Location": f"{hub.elsewhere}/moved/{repo}/{name}"})
        return self.content(name, hub.repositories[repo][name])

    def content(self, name: str, content: bytes) -> None:
        hub = self.hub
        if name in hub.damaged:
            content = bytes([content[0] ^ 1]) + content[1:]
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and not hub.ignores_ranges:
            start = int(wanted[1])
        status = 206 if start else 200
        said = start + 1 if hub.wrong_ranges else start
        body = content[start:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {said}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if cuts := hub.cuts.get(name):
            self.wfile.write(body[: cuts.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(body)

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if self.hub.retry_after and status == 429:
            self.send_header("Retry-After", self.hub.retry_after)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
