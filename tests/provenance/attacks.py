"""What somebody with the database in hand can do to a ledger: shared by the tests and by `bench/ledger.py`.

Careless ones change rows; careful ones make the whole tree anew behind their change, with the owner's own key.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from freehold import merkle
from freehold.database import Transaction
from freehold.provenance.heads import sign
from freehold.provenance.heads import text as envelope_text
from freehold.provenance.merkle_log import LEVEL, leaf_of
from freehold.signing import Identity

Attack = Callable[[Transaction, random.Random, int], None]


def edit_record(t: Transaction, r: random.Random, size: int) -> None:
    at = r.randrange(size)
    text = _body(t, at)
    position = r.randrange(len(text))
    t.run("update ledger_records set body = :b where position = :p", b=_changed(text, position), p=at)


def edit_record_and_leaf(t: Transaction, r: random.Random, size: int) -> None:
    at = r.randrange(size)
    _replace(t, at, _body(t, at).replace('"outcome":"finished"', '"outcome":"failed"'))


def edit_salt(t: Transaction, r: random.Random, size: int) -> None:
    t.run("update ledger_records set salt = :s where position = :p", s=r.randbytes(32), p=r.randrange(size))


def edit_listing(t: Transaction, r: random.Random, size: int) -> None:
    t.run("update ledger_records set at = at + 1 where position = :p", p=r.randrange(size))


def edit_text(t: Transaction, r: random.Random, size: int) -> None:
    row = t.rows("select record, answer from ledger_contents where answer is not null order by record")[
        r.randrange(size)
    ]
    text = row[1].replace('"content":"', '"content":"x', 1)
    t.run("update ledger_contents set answer = :a where record = :r", a=text, r=row[0])


def delete_record(t: Transaction, r: random.Random, size: int) -> None:
    t.run("delete from ledger_records where position = :p", p=r.randrange(size))


def delete_and_close_ranks(t: Transaction, r: random.Random, size: int) -> None:
    at = r.randrange(size - 1)
    t.run("delete from ledger_records where position = :p", p=at)
    t.run("update ledger_records set position = -position where position > :p", p=at)
    t.run("update ledger_records set position = -position - 1 where position < 0")


def delete_content(t: Transaction, r: random.Random, size: int) -> None:
    t.run("update ledger_records set body = null, salt = null where position = :p", p=r.randrange(size))


def delete_text(t: Transaction, r: random.Random, size: int) -> None:
    id = t.rows("select record from ledger_contents where answer is not null order by record")[r.randrange(size)][0]
    t.run("delete from ledger_contents where record = :r", r=id)


def cut_end(t: Transaction, r: random.Random, size: int) -> None:
    t.run("delete from ledger_records where position >= :p", p=size - r.randrange(1, size // 2))


def swap(t: Transaction, r: random.Random, size: int) -> None:
    one, other = r.sample(range(size), 2)
    t.run("update ledger_records set position = -1 where position = :p", p=one)
    t.run("update ledger_records set position = :p where position = :q", p=one, q=other)
    t.run("update ledger_records set position = :p where position = -1", p=other)


def edit_node(t: Transaction, r: random.Random, size: int) -> None:
    addresses = t.rows("select address from ledger_nodes order by address")
    address = addresses[r.randrange(len(addresses))][0]
    t.run("update ledger_nodes set hash = :h where address = :a", h=r.randbytes(32), a=address)


def edit_head(t: Transaction, r: random.Random, size: int) -> None:
    t.run("update ledger_heads set envelope = replace(envelope, 'a', 'b')")


def careful(attack: Attack, identity: Identity) -> Attack:
    """The same by somebody who makes leaves, tree and heads anew, with the right key."""

    def whole(t: Transaction, r: random.Random, size: int) -> None:
        attack(t, r, size)
        rows = t.rows("select position, salt, body from ledger_records where body is not null")
        t.many(
            "update ledger_records set leaf = :leaf where position = :p",
            [{"p": p, "leaf": leaf_of(bytes(salt), body)} for p, salt, body in rows],
        )
        leaves = t.rows("select leaf, id from ledger_records order by position")
        t.many(
            "update ledger_records set position = :n where id = :id",
            [{"n": -n - 2, "id": i} for n, (_, i) in enumerate(leaves)],
        )
        t.run("update ledger_records set position = -position - 2")
        tree = merkle.Tree(bytes(leaf) for leaf, _ in leaves)
        t.run("delete from ledger_nodes")
        nodes = [(level, i) for n in range(tree.size) for level, i in merkle.completed(n)]
        t.many(
            "insert into ledger_nodes (address, hash) values (:a, :h)",
            [{"a": level * LEVEL + i, "h": tree.node(level, i)} for level, i in nodes],
        )
        log = t.rows("select id from ledger_log")[0][0]
        t.run("delete from ledger_heads")
        head = sign(identity, log, tree.size, tree.root(), 1)
        t.run(
            "insert into ledger_heads values (:size, :key, 1, :envelope, :pem)",
            size=tree.size, key=identity.public.id, envelope=envelope_text(head), pem=identity.public.pem,
        )  # fmt: skip

    whole.__name__ = f"careful_{attack.__name__}"
    return whole


def fork(t: Transaction, r: random.Random, size: int) -> None:
    """From some record on, another history of the same length."""
    for at in range(size - r.randrange(1, size // 2), size):
        _replace(t, at, _body(t, at).replace('"choices":1', '"choices":2'))


CARELESS: tuple[Attack, ...] = (
    edit_record, edit_record_and_leaf, edit_salt, edit_listing, edit_text, delete_record, delete_and_close_ranks,
    delete_content, delete_text, cut_end, swap, edit_node, edit_head, fork,
)  # fmt: skip
CAREFUL: tuple[Attack, ...] = (edit_record_and_leaf, delete_record, cut_end, swap, fork)
"""Those that leave a ledger which is whole in itself, once the tree is made anew."""


def _body(t: Transaction, at: int) -> str:
    body: str = t.rows("select body from ledger_records where position = :p", p=at)[0][0]
    return body


def _replace(t: Transaction, at: int, body: str) -> None:
    salt = bytes(t.rows("select salt from ledger_records where position = :p", p=at)[0][0])
    t.run("update ledger_records set body = :b, leaf = :l where position = :p", b=body, l=leaf_of(salt, body), p=at)


def _changed(text: str, at: int) -> str:
    return text[:at] + ("x" if text[at] != "x" else "y") + text[at + 1 :]
