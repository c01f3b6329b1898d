"""Checks a pack for the other side: with the pack and a head that was published before, and nothing else.

Looks from the outside in: the archive's own form, the signed manifest, every file and line against it, then what the
pack says: records in the tree of its head, this head continuing the published one, texts behind their hashes. Knows
no database and no key of ours.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from freehold import merkle
from freehold.errors import FormatError
from freehold.provenance import heads
from freehold.provenance.archive import Member, unpack
from freehold.provenance.heads import Head
from freehold.provenance.merkle_log import leaf_of
from freehold.provenance.packing import MANIFEST_TYPE, line_digest
from freehold.provenance.records import text_hash
from freehold.signing import PublicKey, open_envelope


@dataclass(slots=True)
class Checked:
    """What was found in a pack.

    Args:
        records, texts: as many as were proved.
        vouched: as many of the records as a published head covers; later ones only the pack's own head vouches for.
        problems: what is wrong and where; empty = everything holds.
        not_logged: as the pack says it.
    """

    records: int = 0
    vouched: int = 0
    texts: int = 0
    size: int = 0
    root: str = ""
    log: str = ""
    made_at: str = ""
    not_logged: list[str] = field(default_factory=list)
    overlap_report: str | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Everything holds."""
        return not self.problems


def check_pack(data: bytes, published: Sequence[Head]) -> Checked:
    """Checks a pack against heads that were published.

    Args:
        data: the archive.
        published: of the ledger in question, from elsewhere; their key is the one that is trusted.
    """
    checked = Checked()
    members, checked.problems = unpack(data)
    files = dict(members)
    if len(files) < len(members):
        checked.problems.append("a file is in the archive twice")
    try:
        manifest = _manifest(files, published, checked)
        if manifest is not None:
            _files(members, manifest, checked)
            if checked.good:  # what does not even arrive whole need not be read
                _contents(files, manifest, published, checked)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, FormatError) as error:
        checked.problems.append(f"the pack is not as documented: {type(error).__name__}: {error}")
    return checked


def _manifest(files: Mapping[str, bytes], published: Sequence[Head], checked: Checked) -> dict[str, Any] | None:
    """The manifest, if the key of a published head has signed it."""
    text, envelope = files.get("manifest.json"), files.get("manifest.sig")
    if text is None or envelope is None:
        checked.problems.append("manifest.json or manifest.sig is missing")
        return None
    for key in {head.key for head in published}:
        try:
            signed = open_envelope(json.loads(envelope), key, MANIFEST_TYPE)
        except (FormatError, ValueError, RecursionError):
            continue
        if signed == text:
            if envelope != _envelope(text, key, json.loads(envelope)):
                checked.problems.append("manifest.sig is not as it was written")
            found: dict[str, Any] = json.loads(text)
            return found
        at = next(
            (i for i, (a, b) in enumerate(zip(signed, text, strict=False)) if a != b), min(len(signed), len(text))
        )
        checked.problems.append(f"manifest.json is not the one that was signed (byte {at})")
        return None
    checked.problems.append("manifest.sig: no key of a published head has signed this manifest")
    return None


def _envelope(text: bytes, key: PublicKey, found: Mapping[str, Any]) -> bytes:
    """The only form of an envelope that holds this signature: nothing around it can be changed unseen."""
    signature = base64.b64encode(base64.b64decode(found["signatures"][0]["sig"])).decode()
    envelope = {
        "payloadType": MANIFEST_TYPE,
        "payload": base64.b64encode(text).decode(),
        "signatures": [{"keyid": key.id, "sig": signature}],
    }
    return json.dumps(envelope, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _files(members: Sequence[Member], manifest: Mapping[str, Any], checked: Checked) -> None:
    """Every file against the manifest, line by line where it has lines."""
    listed = {entry["name"]: entry for entry in manifest["files"]}
    for name, data in members:
        if name in ("manifest.json", "manifest.sig"):
            continue
        entry = listed.pop(name, None)
        if entry is None:
            checked.problems.append(f"{name} is not in the manifest")
        elif hashlib.sha256(data).hexdigest() != entry["sha256"]:
            checked.problems.append(f"{name} was changed{_where(data, entry.get('lines'))}")
    checked.problems += [f"{name} is missing" for name in listed]


def _where(data: bytes, lines: Sequence[str] | None) -> str:
    """Which line, when the manifest knows the lines."""
    if lines is None:
        return ""
    found = [line_digest(line) for line in data.splitlines()]
    for number, (expected, line) in enumerate(zip(lines, found, strict=False), start=1):
        if expected != line:
            return f" in line {number}"
    return (
        f": it has {len(found)} lines, {len(lines)} were packed" if len(found) != len(lines) else " between its lines"
    )


def _contents(
    files: Mapping[str, bytes], manifest: Mapping[str, Any], published: Sequence[Head], checked: Checked
) -> None:
    head = heads.opened(json.loads(files["head.json"]))
    checked.size, checked.root, checked.log = head.size, head.root.hex(), head.log
    checked.made_at, checked.not_logged = str(manifest["made_at"]), [str(line) for line in manifest["not_logged"]]
    checked.overlap_report = manifest["overlap_report"]
    if (manifest["log"], manifest["size"], manifest["root"]) != (head.log, head.size, head.root.hex()):
        checked.problems.append("head.json is not the head that the manifest names")
    proofs = {int(found["size"]): found["proof"] for found in map(json.loads, files["heads.jsonl"].splitlines())}
    continues(head, published, {size: list(map(bytes.fromhex, proof)) for size, proof in proofs.items()}, checked)
    hashes = _records(files["records.jsonl"], head, covered(published, checked), checked)
    if len(hashes) != manifest["records"]:
        checked.problems.append(f"records.jsonl has {len(hashes)} records, the manifest says {manifest['records']}")
    _texts(files["texts.jsonl"], hashes, checked)


def continues(head: Head, published: Sequence[Head], proofs: Mapping[int, Sequence[bytes]], checked: Checked) -> None:
    """Notes where a head does not continue the published ones.

    Args:
        proofs: of consistency, by the size of the earlier head.
    """
    for outside in published:
        if outside.log != head.log:
            checked.problems.append(f"the head is of ledger {head.log}, the published head of {outside.log}")
        elif outside.key != head.key:
            checked.problems.append("the head is signed by another key than the published head")
        elif outside.size > head.size:
            checked.problems.append(
                f"the published head has {outside.size} records, the one here {head.size}: ask for one made after it"
            )
        elif outside.size != head.size and outside.size not in proofs:
            checked.problems.append(f"there is no proof for the published head of {outside.size} records")
        elif not merkle.verify_consistency(
            outside.size, head.size, outside.root, head.root, proofs.get(outside.size, [])
        ):
            checked.problems.append(f"the head does not continue the published head of {outside.size} records: a fork")


def covered(published: Sequence[Head], checked: Checked) -> int:
    """How many records from the ledger's beginning the published heads vouch for; none when something is wrong."""
    return max((head.size for head in published), default=0) if checked.good else 0


def _records(lines: bytes, head: Head, vouched: int, checked: Checked) -> dict[str, dict[str, Any]]:
    """Proves each record, of which the published heads vouch for those before `vouched`; gives their bodies by id."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines.splitlines(), start=1):
        entry = json.loads(line)
        text = entry.get("record")
        leaf = bytes.fromhex(entry["leaf"]) if text is None else leaf_of(bytes.fromhex(entry["salt"]), text)
        proof = [bytes.fromhex(value) for value in entry["proof"]]
        body = {} if text is None else json.loads(text)
        if not merkle.verify_inclusion(leaf, entry["position"], head.size, proof, head.root):
            checked.problems.append(f"records.jsonl line {number}: {entry['id']} is not in the ledger's tree")
        elif text is not None and body["id"] != entry["id"]:
            checked.problems.append(f"records.jsonl line {number}: the record is {body['id']}, not {entry['id']}")
        else:
            checked.records += 1
            checked.vouched += entry["position"] < vouched
        found[entry["id"]] = body
    return found


def _texts(lines: bytes, bodies: Mapping[str, Mapping[str, Any]], checked: Checked) -> None:
    for number, line in enumerate(lines.splitlines(), start=1):
        entry = json.loads(line)
        body, salt = bodies.get(entry["id"], {}), bytes.fromhex(entry["salt"])
        for kind in ("prompt", "answer"):
            if body.get(kind, {}).get("hash") != text_hash(salt, kind, entry[kind]):
                checked.problems.append(
                    f"texts.jsonl line {number}: the {kind} of {entry['id']} is not the recorded one"
                )
                break
        else:
            checked.texts += 1
