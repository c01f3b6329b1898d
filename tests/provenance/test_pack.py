"""The allegation pack: it proves itself to whoever has a published head, and shows where it was changed."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from freehold.database import Database
from freehold.errors import LedgerError, UsageError
from freehold.provenance import archive, deeds, heads, packing
from freehold.provenance.checking import check_pack
from freehold.provenance.exchanges import Deed
from freehold.provenance.heads import Head
from freehold.provenance.ledger import Ledger
from freehold.provenance.packing import Pack, Selection, make_pack
from freehold.provenance.proofs import check_file, prove
from freehold.signing import Identity
from tests.provenance.made import add, exchange, ledger


@dataclass(frozen=True)
class Case:
    """A ledger, a head that was published in its middle, and ids of its records."""

    ledger: Ledger
    published: Head
    ids: list[str]

    def pack(self, selection: Selection | None = None, **given: object) -> Pack:
        chosen, head = selection or Selection(), self.ledger.head()
        return make_pack(self.ledger.database, self.ledger.identity, head, chosen, now=1, **given)  # type: ignore[arg-type]


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    with Database(f"sqlite:///{tmp_path / 'x.db'}") as database, ledger(database, tmp_path) as kept:
        ids = add(kept, *[exchange(f"prompt {i}", f"answer {i}") for i in range(9)])
        published = kept.head()
        turns = [("user", "hi"), ("assistant", "Closed words."), ("user", "and?")]
        ids += add(kept, exchange("hi", "Closed words.", who="openai"), exchange(turns, "Open words."))
        kept.record(Deed("rec_train", "train", 5, ({"id": "sha256:x", "kind": "dataset"},), ({"id": "sha256:y"},)))
        yield Case(kept, published, ids)


def files(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_a_pack_is_the_same_however_many_records_are_read_at_a_time(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = case.pack()
    monkeypatch.setattr(packing, "PAGE", 2)
    assert case.pack().data == whole.data


def test_a_pack_is_good_for_whoever_has_a_published_head(case: Case) -> None:
    checked = check_pack(case.pack().data, [case.published])
    assert checked.good, checked.problems
    assert (checked.records, checked.texts, checked.size) == (12, 11, 12)
    assert checked.log == case.ledger.id


def test_a_pack_is_an_archive_that_anybody_can_open(case: Case) -> None:
    found = files(case.pack(overlap=("report.html", b"<p>none</p>")).data)
    assert list(found)[:2] == ["manifest.json", "manifest.sig"]
    assert found["overlap.html"] == b"<p>none</p>"
    assert json.loads(found["manifest.json"])["overlap_report"] == "overlap.html"
    assert "freehold ledger check" in found["README.txt"].decode()
    prov = json.loads(found["prov.json"])
    assert prov["activity"]["freehold:rec_train"]["prov:type"] == "train"
    pair = {
        "prov:generatedEntity": f"freehold:{case.ids[-1]}/prompt",
        "prov:usedEntity": f"freehold:{case.ids[-2]}/answer",
    }
    assert pair in prov["wasDerivedFrom"].values()


def test_any_flipped_byte_is_found_and_named(case: Case) -> None:
    data = case.pack(Selection(records=(case.ids[-1],))).data
    steps = range(0, len(data), max(1, len(data) // 700))
    for at in steps:
        for bit in (1, 0x20):
            changed = bytearray(data)
            changed[at] ^= bit
            checked = check_pack(bytes(changed), [case.published])
            assert not checked.good, f"byte {at} of {len(data)}"
            for problem in checked.problems:
                assert any(word in problem for word in (".json", ".sig", "txt", "manifest", "byte", "name")), problem


@pytest.mark.parametrize("name", ["records.jsonl", "texts.jsonl", "heads.jsonl"])
def test_a_flipped_byte_in_a_line_names_the_line(case: Case, name: str) -> None:
    data = bytearray(case.pack().data)
    content = files(bytes(data))[name]
    second = content.index(b"\n") + 20 if content.count(b"\n") > 1 else 20
    data[data.index(content) + second] ^= 1
    problems = check_pack(bytes(data), [case.published]).problems
    line = 2 if content.count(b"\n") > 1 else 1
    assert any(f"{name} was changed in line {line}" in problem for problem in problems)


def test_a_cut_or_padded_pack_is_found(case: Case) -> None:
    data = case.pack().data
    for changed in (data[:-1], data[: len(data) // 2], data + b"x", b"x" + data, b""):
        assert not check_pack(changed, [case.published]).good


def test_a_pack_signed_by_somebody_else_is_refused(case: Case) -> None:
    stranger = Identity.new()
    head = heads.sign(stranger, case.ledger.id, *_size_and_root(case))
    forged = make_pack(case.ledger.database, stranger, head, Selection(), now=1)
    (problem,) = check_pack(forged.data, [case.published]).problems
    assert "no key of a published head" in problem


def _size_and_root(case: Case) -> tuple[int, bytes, int]:
    head = case.ledger.head()
    return head.size, head.root, 1


def test_a_rewritten_history_does_not_continue_the_published_head(case: Case) -> None:
    forged = heads.sign(case.ledger.identity, case.ledger.id, case.published.size, b"\1" * 32, 1)
    (problem,) = check_pack(case.pack().data, [forged]).problems
    assert "does not continue" in problem and "fork" in problem


def test_a_head_of_another_ledger_or_a_later_one_does_not_fit(case: Case) -> None:
    data = case.pack().data
    other = heads.sign(case.ledger.identity, "another", case.published.size, case.published.root, 1)
    assert any("of another" in problem for problem in check_pack(data, [other]).problems)
    add(case.ledger, exchange("later"))
    assert any("made after it" in problem for problem in check_pack(data, [case.ledger.head()]).problems)
    unheard = heads.sign(case.ledger.identity, case.ledger.id, 3, b"\1" * 32, 1)
    assert any("no proof for" in problem for problem in check_pack(data, [unheard]).problems)


def test_a_selection_takes_along_what_its_records_were_made_from(case: Case) -> None:
    pack = case.pack(Selection(records=(case.ids[-1],)))
    assert pack.manifest["records"] == 2
    assert check_pack(pack.data, [case.published]).records == 2
    by_provider = case.pack(Selection(provider="openai"))
    assert by_provider.manifest["counts"]["by_backend"] == {"openai": 1}
    with pytest.raises(UsageError, match="no record is chosen"):
        case.pack(Selection(provider="nobody"))


def test_hidden_and_forgotten_texts_leave_the_proofs_good_and_are_told(case: Case) -> None:
    hidden = case.pack(Selection(show_texts=False))
    checked = check_pack(hidden.data, [case.published])
    assert checked.good and checked.texts == 0
    assert any("not shown on purpose" in line for line in checked.not_logged)
    deeds.forget(case.ledger, case.ids[0], whole=True)
    later = check_pack(case.pack().data, [case.published])
    assert later.good and later.texts == 10


def test_what_was_not_logged_is_said(case: Case) -> None:
    told = " ".join(case.pack(unseen=["openai", "anthropic"]).manifest["not_logged"])
    assert "when this ledger began" in told and "freehold run" in told
    assert "anthropic is configured" in told and "openai is configured" not in told


def test_one_record_can_be_proved_by_itself(case: Case) -> None:
    proof = json.dumps(prove(case.ledger, case.ids[4])).encode()
    checked = check_file(proof, [case.published])
    assert checked.good and checked.records == 1
    for old, new in ((b'"position": 4', b'"position": 5'), (b"tiny", b"tinY"), (b'"salt": "', b'"salt": "00')):
        assert old in proof and not check_file(proof.replace(old, new, 1), [case.published]).good
    assert not check_file(b"{}", [case.published]).good
    deeds.forget(case.ledger, case.ids[4], whole=True)
    with pytest.raises(LedgerError, match="was forgotten"):
        prove(case.ledger, case.ids[4])


def test_an_archive_has_one_form() -> None:
    members = [("a.txt", b"one"), ("b/c.json", b"{}"), ("empty", b"")]
    data = archive.pack(members)
    assert archive.unpack(data) == (members, [])
    assert archive.pack(members) == data
    assert archive.unpack(b"nothing") == ([], ["this is no pack: it does not begin with a member (byte 0)"])


def test_a_pack_that_would_be_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 10)
    with pytest.raises(LedgerError, match="at most 10 bytes"):
        archive.pack([("a", b"x" * 11)])
