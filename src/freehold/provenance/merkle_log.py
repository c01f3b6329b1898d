"""The append-only Merkle log in the database: records in order, and the hashes of every full subtree above them.

A leaf is a salted commitment to a record's canonical JSON, so the record itself can be deleted and its place in the tree
stays provable. Appending writes two rows a record on average; a proof reads about twice log2(size) of them by address,
never the records in between. What records mean is known elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from freehold import merkle
from freehold.database import Transaction
from freehold.errors import LedgerError
from freehold.merkle import Address, Proof, Span

SALT_BYTES = 32
LEVEL = 1 << 48
"""Between the addresses of two levels of nodes."""
MOST_NAMES = 400
"""Values of one query: SQLite has a limit."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record to append: its id, its kind, when (microseconds since 1970), salt of 32 bytes and canonical JSON."""

    id: str
    kind: str
    at: int
    salt: bytes
    body: str

    @property
    def leaf(self) -> bytes:
        """Its leaf hash."""
        return leaf_of(self.salt, self.body)


def leaf_of(salt: bytes, body: str) -> bytes:
    """The leaf hash of a record: over SHA-256(salt || body); the salt has a fixed length, so nothing can shift."""
    return merkle.leaf_hash(hashlib.sha256(salt + body.encode()).digest())


def size(transaction: Transaction) -> int:
    """How many records there are."""
    row = transaction.one("select max(position) from ledger_records")
    return 0 if row is None or row[0] is None else int(row[0]) + 1


def append(transaction: Transaction, entries: Sequence[Entry]) -> int:
    """Appends records in their order and gives the position of the first."""
    first = size(transaction)
    nodes = _read(transaction, merkle.addresses([(0, first)]))
    rows, made = [], []
    for position, entry in enumerate(entries, start=first):
        leaf = nodes[0, position] = entry.leaf
        for level, i in merkle.completed(position):
            nodes[level, i] = merkle.node_hash(nodes[level - 1, 2 * i], nodes[level - 1, 2 * i + 1])
            made.append({"address": level * LEVEL + i, "hash": nodes[level, i]})
        rows.append(
            {"position": position, "id": entry.id, "kind": entry.kind, "at": entry.at,
             "leaf": leaf, "salt": entry.salt, "body": entry.body}
        )  # fmt: skip
    transaction.many(
        "insert into ledger_records (position, id, kind, at, leaf, salt, body) "
        "values (:position, :id, :kind, :at, :leaf, :salt, :body)",
        rows,
    )
    transaction.many(  # nodes may be left over where records were cut off: the log must go on, `verify` will tell
        "insert into ledger_nodes (address, hash) values (:address, :hash) "
        "on conflict (address) do update set hash = excluded.hash",
        made,
    )
    return first


def root(transaction: Transaction, count: int) -> bytes:
    """The root over the first `count` records."""
    return _hashes(transaction, [(0, count)])[0] if count else merkle.EMPTY_ROOT


def inclusion(transaction: Transaction, position: int, count: int) -> Proof:
    """The proof that a record is in the tree of the first `count`."""
    return _hashes(transaction, merkle.inclusion_spans(position, count))


def consistency(transaction: Transaction, old: int, new: int) -> Proof:
    """The proof that the tree of `new` records begins with the one of `old`."""
    return _hashes(transaction, merkle.consistency_spans(old, new))


def names(prefix: str, values: Sequence[object]) -> tuple[str, dict[str, object]]:
    """`:p0, :p1 ...` for an `in (...)`, and the values by those names."""
    return ", ".join(f":{prefix}{i}" for i in range(len(values))), {f"{prefix}{i}": v for i, v in enumerate(values)}


def _hashes(transaction: Transaction, spans: Sequence[Span]) -> list[bytes]:
    nodes = _read(transaction, merkle.addresses(spans))
    return [merkle.span_hash(span, nodes) for span in spans]


def _read(transaction: Transaction, addresses: Iterable[Address]) -> dict[Address, bytes]:
    """Nodes by address, leaves from the records."""
    wanted = list(addresses)
    leaves = [i for level, i in wanted if level == 0]
    inner = [level * LEVEL + i for level, i in wanted if level]
    found: dict[Address, bytes] = {}
    for position, leaf in _in(transaction, "select position, leaf from ledger_records where position in", leaves):
        found[0, position] = bytes(leaf)
    for address, value in _in(transaction, "select address, hash from ledger_nodes where address in", inner):
        found[address // LEVEL, address % LEVEL] = bytes(value)
    if len(found) < len(wanted):
        missing = next(address for address in wanted if address not in found)
        raise LedgerError(
            f"the ledger lacks node {missing[1]} of level {missing[0]}",
            hint="`freehold ledger verify` says what is wrong",
        )
    return found


def _in(transaction: Transaction, sql: str, values: Sequence[int]) -> list[tuple[int, bytes]]:
    if not values:
        return []
    marks, named = names("a", values)
    return [(int(key), value) for key, value in transaction.rows(f"{sql} ({marks})", **named)]
