"""The Hugging Face hub: its file listing, its downloads and its cache on disk.

The cache has the layout of the `huggingface_hub` library (blobs, refs, snapshots), so models are shared with every
other tool; that library is not used for transfers because it drops a partial file when the process ends, and checks
sizes only. Here a cut transfer goes on where it stopped, also in a later process, and every file is verified: SHA-256
for large files, git's blob SHA-1 for small ones. Protocol: https://huggingface.co/docs/hub/api. Knows nothing of which
files make a model.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from freehold.errors import ModelNotFoundError, StoreError
from freehold.formats.writing import CHUNK, locked, sync, write_file

if TYPE_CHECKING:
    import httpx2

    from freehold.progress import Progress

DEFAULT_ENDPOINT = "https://huggingface.co"
ATTEMPTS = 5
CONNECT_ATTEMPTS = 2  # nobody there: more patience would only make people wait
MAX_PAUSE = 30.0  # seconds; also for what a server asks for
MAX_LISTING = 64 << 20
MAX_FILES = 100_000
RETRIED = (408, 425, 429, 500, 502, 503, 504)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository; `digest` is SHA-256 (64 digits) or git's blob SHA-1 (40), and names the blob."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]


@dataclass(frozen=True, slots=True)
class HubSettings:
    """Where the hub and its cache are; `token`, and credentials in `endpoint`, are kept out of repr and of errors."""

    endpoint: str
    cache: Path
    offline: bool
    token: str | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> HubSettings:
        """What HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and HF_TOKEN_PATH say."""
        get = (os.environ if environment is None else environment).get
        xdg = Path(get("XDG_CACHE_HOME") or Path.home() / ".cache")
        home = Path(get("HF_HOME") or xdg / "huggingface").expanduser()
        cache = Path(get("HF_HUB_CACHE") or get("HUGGINGFACE_HUB_CACHE") or home / "hub").expanduser()
        offline = (get("HF_HUB_OFFLINE") or get("TRANSFORMERS_OFFLINE") or "").upper() in ("1", "ON", "YES", "TRUE")
        token = (get("HF_TOKEN") or get("HUGGING_FACE_HUB_TOKEN") or "").strip()
        file = Path(get("HF_TOKEN_PATH") or home / "token").expanduser()
        if not token and not get("HF_HUB_DISABLE_IMPLICIT_TOKEN") and file.is_file():
            token = file.read_text(encoding="utf-8", errors="ignore").strip()
        endpoint = (get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        return cls(endpoint, cache, offline, token or None)

    def __repr__(self) -> str:
        return f"HubSettings(endpoint={self.shown!r}, cache={str(self.cache)!r}, offline={self.offline})"

    @property
    def shown(self) -> str:
        """The endpoint as it may be shown: without the name and password that mirrors sometimes want in it."""
        return re.sub(r"//[^/]*@", "//", self.endpoint)

    def repository(self, repo: str) -> Path:
        """The repository's directory in the cache."""
        return self.cache / ("models--" + repo.replace("/", "--"))


class Hub:
    """Lists and fetches. `pause` is called with seconds before trying again."""

    def __init__(self, settings: HubSettings, *, pause: Callable[[float], None] = time.sleep) -> None:
        self.settings = settings
        self._pause = pause

    def listing(self, repo: str, revision: str = "main") -> Listing:
        """Files of a repository.

        Raises:
            ModelNotFoundError: no such repository or revision, or it is private.
            StoreError: gated, offline, or the hub fails.
        """
        address = f"{self.settings.endpoint}/api/models/{quote(repo)}/revision/{quote(revision, safe='')}"
        with self._client() as client:
            for attempt in self._attempts(f"the listing of {repo}"):
                with attempt, client.stream("GET", address, params={"blobs": "true"}) as response:
                    self._check(response, repo, revision)
                    return _listing(repo, _body(response))
        raise AssertionError("unreachable")

    def fetch(self, listing: Listing, files: list[HubFile], revision: str, progress: Progress | None = None) -> Path:
        """Bring files into the cache and give the snapshot's directory; files already there are not fetched again.

        The revision points to the new snapshot only when all files are there.

        Raises:
            StoreError: a checksum differs, the disk is full, or the hub fails. What was received so far is kept for
                the next try, unless its checksum is wrong.
        """
        repository = self.settings.repository(listing.repo)
        snapshot = repository / "snapshots" / listing.commit
        with disk_errors(f"fetching {listing.repo}"), self._client() as client:
            self._check_space(repository, files)
            total = sum(file.size for file in files)
            done = 0
            for file in files:
                start = done

                def advance(count: int, start: int = start, file: HubFile = file) -> None:
                    if progress is not None:
                        progress(start + count, total, f"{listing.repo}/{file.name}")

                self._blob(client, listing, file, repository / "blobs" / file.digest, advance)
                done += file.size
            with locked(self._locks(repository) / "snapshot.lock"):
                for file in files:
                    _link(repository, snapshot / file.name, file.digest)
                if revision != listing.commit:
                    reference = repository / "refs" / revision
                    reference.parent.mkdir(parents=True, exist_ok=True)
                    write_file(reference, listing.commit)
        return snapshot

    def _locks(self, repository: Path) -> Path:
        return self.settings.cache / ".locks" / repository.name  # where huggingface_hub has them too

    def _blob(
        self, client: httpx2.Client, listing: Listing, file: HubFile, blob: Path, advance: Callable[[int], None]
    ) -> None:
        blob.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._locks(blob.parent.parent) / f"{file.digest}.lock"):
            if blob.exists() and blob.stat().st_size == file.size:
                advance(file.size)
                return
            partial = blob.with_name(blob.name + ".incomplete")
            address = f"{self.settings.endpoint}/{quote(listing.repo)}/resolve/{listing.commit}/{quote(file.name)}"
            for attempt in self._attempts(f"{listing.repo}/{file.name}", lambda: _size(partial)):
                with attempt:
                    if self._transfer(client, address, listing, file, partial, advance):
                        partial.replace(blob)
                        return

    def _transfer(
        self,
        client: httpx2.Client,
        address: str,
        listing: Listing,
        file: HubFile,
        partial: Path,
        advance: Callable[[int], None],
    ) -> bool:
        """Receive what is missing; True when the file is complete and its digest is right."""
        with partial.open("ab+") as out:
            have = out.tell()
            if have > file.size:
                out.truncate(have := 0)
            if have < file.size:
                headers = {"Range": f"bytes={have}-"} if have else {}
                with client.stream("GET", address, headers=headers) as response:
                    self._check(response, listing.repo, listing.commit)
                    if have and not _continues(response, have):
                        out.truncate(have := 0)
                    for piece in response.iter_bytes():  # as it arrives: a cut loses nothing
                        have += len(piece)
                        if have > file.size:
                            break
                        out.write(piece)
                        advance(have)
            out.flush()
            sync(out.fileno())
            if have < file.size:  # the server closed early without an error; what came is kept
                raise _Cut(f"{have:,} of {file.size:,} bytes")
            right = have == file.size and _digest(partial, file) == file.digest
        if not right:
            partial.unlink()
            raise StoreError(
                f"{listing.repo}/{file.name} does not have the checksum the hub announced",
                hint="the transfer was damaged or tampered with; it was thrown away, try again",
            )
        return True

    def _attempts(self, what: str, received: Callable[[], int] = lambda: 0) -> Iterator[_Attempt]:
        """Tries with growing pauses, starting over whenever bytes came in; the last failure becomes a StoreError."""
        import httpx2

        tries, before = 0, received()
        while True:
            attempt = _Attempt()
            yield attempt
            error = attempt.error
            if error is None:
                return
            if (now := received()) > before:
                tries, before = 0, now
            tries += 1
            if tries >= (CONNECT_ATTEMPTS if isinstance(error, httpx2.ConnectError) else ATTEMPTS):
                raise _gave_up(what, error, self.settings.shown) from None
            asked = error.pause if isinstance(error, _Busy) else None
            self._pause(min(2.0 ** (tries - 1) if asked is None else asked, MAX_PAUSE))

    def _client(self) -> httpx2.Client:
        import httpx2

        headers = {"Accept-Encoding": "identity", "User-Agent": "freehold"}  # ranges count bytes as they are stored
        if token := self.settings.token:
            if not re.fullmatch(r"[!-~]+", token):  # the HTTP client would quote it in its error
                raise StoreError(
                    "the hub's token must be one line of printable ASCII without spaces, found something else",
                    hint="check HF_TOKEN, or the file that HF_TOKEN_PATH names",
                )
            headers["Authorization"] = f"Bearer {token}"  # dropped on redirects to another host
        return httpx2.Client(headers=headers, follow_redirects=True, timeout=httpx2.Timeout(30.0, connect=10.0))

    def _check(self, response: httpx2.Response, repo: str, revision: str) -> None:
        """Turn a bad status into the error it means."""
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        if status in RETRIED:
            raise _Busy(status, response.headers.get("Retry-After"))
        if code == "GatedRepo" or (status == 403 and code != "RepoNotFound"):
            raise StoreError(
                f"{repo} is gated: its owner wants you to accept its terms first",
                hint=f"accept them at {self.settings.shown}/{repo}, then set HF_TOKEN to a token of that account",
            )
        if code == "RevisionNotFound":
            raise ModelNotFoundError(f"{repo} has no revision {revision!r}", hint="leave out @revision for the newest")
        if status in (401, 404):
            raise ModelNotFoundError(
                f"no model {repo} at {self.settings.shown}, or it is private",
                hint="check the spelling (org/name); for a private one set HF_TOKEN",
            )
        if status not in (200, 206):
            raise StoreError(f"{self.settings.shown} answered {status} for {repo}", hint="try again later")

    def _check_space(self, repository: Path, files: list[HubFile]) -> None:
        missing = sum(file.size for file in files if not (repository / "blobs" / file.digest).exists())
        self.settings.cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.settings.cache).free
        if missing > free:
            raise StoreError(
                f"{missing / 1e9:.1f} GB are needed in {self.settings.cache}, {free / 1e9:.1f} GB are free",
                hint="free some space (`freehold list`, `freehold rm`), or set HF_HUB_CACHE to a larger disk",
            )


class _Busy(Exception):
    """A status worth trying again."""

    def __init__(self, status: int, retry_after: str | None) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.pause = float(retry_after) if retry_after and re.fullmatch(r"\d{1,6}", retry_after) else None


class _Cut(Exception):
    """A transfer ended early."""


class _Attempt:
    """`with` around one try: failures worth another try are kept in `error`, others pass through."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        import httpx2

        if isinstance(error, (_Busy, _Cut, httpx2.TransportError)):
            self.error = error
            return True
        if isinstance(error, (httpx2.HTTPError, httpx2.InvalidURL)):  # too many redirects, a bad address
            raise StoreError(
                f"the hub can't be used: {error}", hint="HF_ENDPOINT must name a Hugging Face hub"
            ) from None
        return False


def _gave_up(what: str, error: Exception, endpoint: str) -> StoreError:
    if isinstance(error, _Busy) and error.status == 429:
        return StoreError(f"{endpoint} limits our requests (429) for {what}", hint="wait, or set HF_TOKEN to be known")
    if isinstance(error, _Busy):
        return StoreError(f"{endpoint} answered {error.status} for {what}, {ATTEMPTS} times", hint="try again later")
    reason = str(error) or type(error).__name__
    return StoreError(
        f"can't fetch {what} from {endpoint}: {reason}",
        hint="check the network (HF_ENDPOINT names a mirror); what was received is kept for the next try",
    )


def _body(response: httpx2.Response) -> Any:
    import json

    received = bytearray()
    for piece in response.iter_bytes(CHUNK):
        received += piece
        if len(received) > MAX_LISTING:
            raise StoreError(f"the hub's listing has more than {MAX_LISTING >> 20} MiB")
    try:
        return json.loads(received)
    except (ValueError, RecursionError):
        raise StoreError("the hub's listing is not JSON", hint="HF_ENDPOINT must name a Hugging Face hub") from None


def _listing(repo: str, document: Any) -> Listing:
    """Check what the server says: names become paths and digests become file names."""
    commit = document.get("sha") if isinstance(document, dict) else None
    siblings = document.get("siblings") if isinstance(document, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or not isinstance(siblings, list):
        raise StoreError(f"the hub's listing of {repo} lacks its commit or files", hint="HF_ENDPOINT must name a hub")
    if len(siblings) > MAX_FILES:
        raise StoreError(f"{repo} lists more than {MAX_FILES:,} files")
    return Listing(repo, commit, tuple(_file(repo, entry) for entry in siblings))


def _file(repo: str, entry: Any) -> HubFile:
    entry = entry if isinstance(entry, dict) else {}
    lfs = entry.get("lfs") if isinstance(entry.get("lfs"), dict) else {}
    name, size = entry.get("rfilename"), lfs.get("size", entry.get("size"))
    digest = lfs.get("sha256") or lfs.get("oid") or entry.get("blobId")
    if not isinstance(name, str) or not _harmless(name):
        raise StoreError(f"{repo} lists a file named {str(name)[:200]!r}, which is no relative path")
    if not isinstance(size, int) or size < 0 or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise StoreError(f"the hub says neither size nor checksum of {repo}/{name}")
    return HubFile(name, size, digest)


def _harmless(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name and name.isprintable()


def _continues(response: httpx2.Response, have: int) -> bool:
    if response.status_code != 206:
        return False
    match = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != have:
        raise StoreError(f"asked for bytes from {have:,}, the server sent {response.headers.get('Content-Range')!r}")
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path, file: HubFile) -> str:
    # git's blob id is SHA-1 over a header and the content; it names content, security rests on HTTPS
    git = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    digest = hashlib.sha256() if len(file.digest) == 64 else git
    with path.open("rb") as source:
        while piece := source.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _link(repository: Path, pointer: Path, digest: str) -> None:
    """Point from the snapshot to the blob, as huggingface_hub does: with a relative symbolic link."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(repository / "blobs" / digest, pointer.parent)
    if pointer.is_symlink() and str(pointer.readlink()) == target:
        return
    fresh = pointer.with_name(f"{pointer.name}.partial")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(pointer)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Errors of the file system as StoreErrors with a hint."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"the disk filled up while {what}", hint="free some space and try again") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(
                f"no permission to write {error.filename} while {what}", hint="set FREEHOLD_HOME and HF_HOME"
            ) from None
        raise StoreError(f"{what}: {error}") from None
