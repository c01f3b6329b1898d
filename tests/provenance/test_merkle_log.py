"""The Merkle log in SQLite and PostgreSQL: the same tree as in memory, proofs from few rows."""

from __future__ import annotations

import pytest

from freehold import merkle
from freehold.database import Database, Transaction
from freehold.errors import LedgerError
from freehold.provenance import merkle_log
from freehold.provenance.merkle_log import Entry, append, leaf_of


def entries(first: int, last: int) -> list[Entry]:
    return [Entry(f"rec_{i}", "test", i, b"s" * 32, f'{{"n":{i}}}') for i in range(first, last)]


def test_however_it_is_appended_the_tree_is_that_of_the_rfc(database: Database) -> None:
    everything = entries(0, 150)
    tree = merkle.Tree(entry.leaf for entry in everything)
    at = 0
    for step in (1, 1, 2, 7, 1, 64, 30, 44):
        assert database.now(lambda t, at=at, step=step: append(t, everything[at : at + step])) == at  # type: ignore[misc]
        at += step
        assert database.now(merkle_log.size) == at
        assert database.now(lambda t, at=at: merkle_log.root(t, at)) == tree.root(at)  # type: ignore[misc]
    for size in (1, 2, 3, 64, 100, 149, 150):
        assert database.now(lambda t, n=size: merkle_log.root(t, n)) == tree.root(size)  # type: ignore[misc]
        for position in {0, size // 2, size - 1}:
            proof = database.now(lambda t, p=position, n=size: merkle_log.inclusion(t, p, n))  # type: ignore[misc]
            leaf = everything[position].leaf
            assert proof == tree.inclusion(position, size)
            assert merkle.verify_inclusion(leaf, position, size, proof, tree.root(size))
        proof = database.now(lambda t, n=size: merkle_log.consistency(t, n, 150))  # type: ignore[misc]
        assert merkle.verify_consistency(size, 150, tree.root(size), tree.root(), proof)


def test_an_empty_log_has_the_empty_root(database: Database) -> None:
    assert database.now(merkle_log.size) == 0
    assert database.now(lambda t: merkle_log.root(t, 0)) == merkle.EMPTY_ROOT
    assert database.now(lambda t: append(t, [])) == 0


def test_a_proof_reads_few_rows(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.now(lambda t: append(t, entries(0, 1000)))
    rows, read = [], Transaction.rows

    def counting(self: Transaction, sql: str, **values: object) -> list[tuple[object, ...]]:
        found = read(self, sql, **values)
        rows.extend(found)
        return found

    monkeypatch.setattr(Transaction, "rows", counting)
    database.now(lambda t: merkle_log.inclusion(t, 417, 1000))
    assert 10 <= len(rows) <= 20


def test_a_missing_node_is_named(database: Database) -> None:
    database.now(lambda t: append(t, entries(0, 16)))
    database.now(lambda t: t.run("delete from ledger_nodes where address = :a", a=2 * merkle_log.LEVEL + 3))
    with pytest.raises(LedgerError, match="lacks node 3 of level 2"):
        database.now(lambda t: merkle_log.inclusion(t, 8, 16))


def test_the_log_goes_on_after_its_end_was_cut_off(database: Database) -> None:
    database.now(lambda t: append(t, entries(0, 16)))
    database.now(lambda t: t.run("delete from ledger_records where position >= 9"))
    database.now(lambda t: append(t, entries(20, 30)))
    tree = merkle.Tree(entry.leaf for entry in [*entries(0, 9), *entries(20, 30)])
    assert database.now(lambda t: merkle_log.root(t, 19)) == tree.root()


def test_a_leaf_commits_to_salt_and_record() -> None:
    leaf = leaf_of(b"s" * 32, '{"n":1}')
    assert len({leaf, leaf_of(b"t" * 32, '{"n":1}'), leaf_of(b"s" * 32, '{"n":2}')}) == 3
