"""Training data out of the ledger: chats that were answered under terms which allow it, and nothing that leans on others.

One JSON object a line, in the form that fine-tuning tools take (`messages`, `tools`), with the record it came from.
What is left out is named, with its reason, in a manifest beside it. Records are read the newest first, so that the
shorter beginnings of a conversation are seen to be part of what is exported already. Each record is checked against
its leaf and its texts against their hashes: what was changed afterwards is not exported. Knows no rule: whether a
record may be exported is what the record says.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from freehold.database import Database
from freehold.errors import FreeholdError, UsageError
from freehold.formats.writing import replacing
from freehold.progress import Progress, silent
from freehold.provenance.merkle_log import leaf_of
from freehold.provenance.records import text_hash

PAGE = 2000
COMPLETE = frozenset({"stop", "tool_calls"})

REASONS = {
    "altered": "the record or its text is not what was recorded",
    "barred": "written by a source whose terms bar training",
    "contained": "the same words are part of a later record that is exported",
    "cut": "the answer was cut off or filtered",
    "documents": "the prompt has documents, which are not kept",
    "duplicate": "the same words are exported from a later record",
    "empty": "nothing was answered",
    "forgotten": "the record was deleted",
    "images": "the prompt has images, which are not kept",
    "no-text": "its text was not kept, or was deleted",
    "not-chat": "a raw prompt or an embedding, not a chat",
    "tainted": "made from the words of a source whose terms bar training or are not known",
    "unfinished": "the answer failed, or the client left",
    "unknown": "terms or origins are not known",
}


class _Training(msgspec.Struct):
    state: str
    because: list[dict[str, Any]] = []


class _Asked(msgspec.Struct):
    kind: str


class _Hash(msgspec.Struct):
    hash: str


class _Record(msgspec.Struct):
    id: str
    asked: _Asked
    outcome: str
    finish: list[str]
    prompt: _Hash
    answer: _Hash
    served_by: list[dict[str, Any]]
    training: _Training


class _Texts(msgspec.Struct):
    messages: list[msgspec.Raw]
    tools: str = ""


class _Words(msgspec.Struct):
    role: str
    content: str
    tool_calls: msgspec.Raw = msgspec.Raw(b"")
    reasoning_content: str = ""
    images: list[str] = []
    documents: list[str] = []


_record = msgspec.json.Decoder(_Record)
_texts = msgspec.json.Decoder(_Texts)
_words = msgspec.json.Decoder(_Words)
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A record that is not exported; `because` as the record says it."""

    record: str
    reason: str
    because: tuple[dict[str, Any], ...] = ()


@dataclass(slots=True)
class Manifest:
    """What an export holds and what it does not.

    Args:
        file, sha256, lines: the exported file.
        log, size: the ledger, and how many records it had.
        exported: (record, choice) of each line, in their order.
    """

    file: str
    log: str
    size: int
    made_at: int
    sha256: str = ""
    lines: int = 0
    records: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=lambda: dict(REASONS))
    exported: list[tuple[str, int]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def manifest_path(out: Path) -> Path:
    """Where the manifest of an export lies."""
    return out.with_name(out.name + ".manifest.json")


def export(
    database: Database,
    out: Path,
    *,
    log: str,
    now: int,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Writes the chats that may be trained on to `out`, and the manifest beside it.

    Args:
        log: id of the ledger.
        now: microseconds since 1970.

    Raises:
        UsageError: a file is there already.
        DatabaseError: the ledger can't be read.
        FreeholdError: the file can't be written.
    """
    for path in (out, manifest_path(out)):
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists", hint="--force replaces it")
    row = database.now(lambda t: t.one("select count(*) from ledger_records"))
    manifest = Manifest(out.name, log, int(row[0]) if row else 0, now)
    try:
        with replacing(out) as file:
            _write(file, database, manifest, progress)
        with replacing(manifest_path(out)) as file:
            file.write(msgspec.json.format(_encoder.encode(manifest), indent=1) + b"\n")
    except OSError as error:
        raise FreeholdError(f"can't write {out}: {error.strerror}") from None
    return manifest


def _write(file: BinaryIO, database: Database, manifest: Manifest, progress: Progress) -> None:
    chosen, sha = _Chosen(manifest), hashlib.sha256()
    for done, found in enumerate(_rows(database)):
        if done % PAGE == 0:
            progress(done, manifest.size, "exporting")
        for line in chosen.lines(*found):
            sha.update(line)
            file.write(line)
    manifest.sha256, manifest.by_reason = sha.hexdigest(), dict(sorted(chosen.counted.items()))


def _rows(database: Database) -> Iterator[tuple[Any, ...]]:
    sql = (
        "select r.position, r.id, r.leaf, r.salt, r.body, c.salt, c.prompt, c.answer from ledger_records r "
        "left join ledger_contents c on c.record = r.id where r.kind = 'exchange' and r.position < :before "
        "order by r.position desc limit :page"
    )
    before = 1 << 60
    while True:
        page = database.now(lambda t, before=before: t.rows(sql, before=before, page=PAGE))  # type: ignore[misc]
        for _, *rest in page:
            yield tuple(rest)
        if len(page) < PAGE:
            return
        before = page[-1][0]


class _Chosen:
    """Decides record by record; remembers which conversations it has exported, by their digests."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._beginnings: set[bytes] = set()
        self._whole: set[bytes] = set()
        self.counted: Counter[str] = Counter()

    def lines(
        self,
        id: str,
        leaf: bytes,
        salt: bytes | None,
        body: str | None,
        text_salt: bytes | None,
        prompt: str | None,
        answer: str | None,
    ) -> list[bytes]:
        """The lines of one record; without any, the manifest says why."""
        self._manifest.records += 1
        if body is None or salt is None:
            return self._leave(id, "forgotten")
        if leaf_of(salt, body) != leaf:
            return self._leave(id, "altered")
        record = _record.decode(body)
        if record.id != id:
            return self._leave(id, "altered")
        if (reason := _unfit(record)) is not None:
            return self._leave(id, reason, tuple(record.training.because))
        if text_salt is None or prompt is None or answer is None:
            return self._leave(id, "no-text")
        kinds = (("prompt", prompt, record.prompt.hash), ("answer", answer, record.answer.hash))
        if any(text_hash(text_salt, kind, text) != wanted for kind, text, wanted in kinds):
            return self._leave(id, "altered")
        return self._written(record, _texts.decode(prompt), _texts.decode(answer))

    def _written(self, record: _Record, prompt: _Texts, answer: _Texts) -> list[bytes]:
        turns = [_words.decode(raw) for raw in prompt.messages]
        if any(turn.images for turn in turns):
            return self._leave(record.id, "images")
        if any(turn.documents for turn in turns):
            return self._leave(record.id, "documents")
        beginnings = _digests(turns, prompt.tools)
        lines, reasons = [], []
        for number, raw in enumerate(answer.messages):
            said = _words.decode(raw)
            digest = _added(beginnings[-1], said)
            reason = self._seen(digest, said, record.finish[number])
            if reason is not None:
                reasons.append(reason)
                continue
            self._whole.add(_with_thinking(digest, said))
            self._manifest.exported.append((record.id, number))
            lines.append(_line(record, number, prompt, raw))
        if not lines:
            return self._leave(record.id, reasons[0] if reasons else "empty")
        self._beginnings.update(beginnings)
        self._manifest.lines += len(lines)
        return lines

    def _seen(self, digest: bytes, said: _Words, finish: str) -> str | None:
        """Why an answer is not exported, None when it is."""
        if finish not in COMPLETE:
            return "cut"
        if not said.content and not said.tool_calls:
            return "empty"
        if _with_thinking(digest, said) in self._whole:
            return "duplicate"
        return "contained" if digest in self._beginnings and not said.reasoning_content else None

    def _leave(self, id: str, reason: str, because: tuple[dict[str, Any], ...] = ()) -> list[bytes]:
        self.counted[reason] += 1
        self._manifest.left_out.append(LeftOut(id, reason, because))
        return []


def _unfit(record: _Record) -> str | None:
    """Why a record can't be exported, by itself."""
    if record.asked.kind != "chat":
        return "not-chat"
    if record.training.state != "clean":
        return record.training.state if record.training.state in ("barred", "tainted") else "unknown"
    if record.outcome != "finished":
        return "unfinished"
    return None


def _digests(turns: list[_Words], tools: str) -> list[bytes]:
    """Of each beginning of a conversation, the empty one first."""
    found = [hashlib.blake2b(tools.encode("utf-8", "replace"), digest_size=16).digest()]
    for turn in turns:
        found.append(_added(found[-1], turn))
    return found


def _added(before: bytes, turn: _Words) -> bytes:
    words = f"{turn.role}\0{turn.content}\0".encode("utf-8", "replace") + bytes(turn.tool_calls)
    return hashlib.blake2b(before + words, digest_size=16).digest()


def _with_thinking(digest: bytes, said: _Words) -> bytes:
    return digest + said.reasoning_content.encode("utf-8", "replace")


def _line(record: _Record, number: int, prompt: _Texts, answer: msgspec.Raw) -> bytes:
    source = {"record": record.id, "answer": number, "served_by": record.served_by}
    line: dict[str, Any] = {"messages": [*prompt.messages, answer]}
    if prompt.tools:
        line["tools"] = msgspec.Raw(prompt.tools.encode())
    return _encoder.encode(line | {"provenance": source}) + b"\n"
