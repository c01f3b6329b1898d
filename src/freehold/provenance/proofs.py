"""The proof of a single record, and the check of whatever somebody handed over: a pack or such a proof.

Knows no terminal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from freehold import merkle
from freehold.database import Transaction
from freehold.errors import FormatError, LedgerError
from freehold.provenance import heads, merkle_log, reading
from freehold.provenance.checking import Checked, check_pack, continues, covered
from freehold.provenance.heads import Head
from freehold.provenance.ledger import Ledger
from freehold.provenance.merkle_log import leaf_of

KIND = "freehold inclusion proof"


def prove(ledger: Ledger, id: str) -> dict[str, Any]:
    """The proof that a record is in the ledger, as a JSON object.

    Raises:
        UsageError: no such record.
        LedgerError: it was forgotten as a whole.
    """
    head = ledger.head()
    record = ledger.database.now(lambda t: reading.find(t, id))
    if record.text is None or record.salt is None:
        raise LedgerError(f"record {record.id} was forgotten: only its place can be proved", hint="it has no content")
    path = ledger.database.now(lambda t: merkle_log.inclusion(t, record.position, head.size))
    earlier = ledger.database.now(lambda t: _continuing(t, head))
    return {
        "kind": KIND,
        "record": record.text,
        "salt": record.salt.hex(),
        "position": record.position,
        "proof": [value.hex() for value in path],
        "head": head.published(),
        "continues": earlier,
    }


def check_file(data: bytes, published: Sequence[Head]) -> Checked:
    """Checks a pack or a proof.

    Args:
        published: heads from elsewhere; their key is the one that is trusted.
    """
    return _check_proof(data, published) if data.lstrip()[:1] == b"{" else check_pack(data, published)


def _continuing(transaction: Transaction, head: Head) -> list[dict[str, Any]]:
    rows = transaction.rows("select distinct size from ledger_heads where size <= :size order by size", size=head.size)
    return [
        {"size": size, "proof": [value.hex() for value in merkle_log.consistency(transaction, size, head.size)]}
        for (size,) in rows
    ]


def _check_proof(data: bytes, published: Sequence[Head]) -> Checked:
    checked = Checked()
    try:
        proof = json.loads(data)
        head, body = heads.opened(proof["head"]), json.loads(proof["record"])
        checked.log, checked.size, checked.root = head.log, head.size, head.root.hex()
        leaf = leaf_of(bytes.fromhex(proof["salt"]), proof["record"])
        path = [bytes.fromhex(value) for value in proof["proof"]]
        if merkle.verify_inclusion(leaf, proof["position"], head.size, path, head.root):
            checked.records = 1
        else:
            checked.problems.append(f"{body['id']} is not in the tree of the head beside it")
        known = {each["size"]: [bytes.fromhex(value) for value in each["proof"]] for each in proof["continues"]}
        continues(head, published, known, checked)
        checked.vouched = int(proof["position"] < covered(published, checked))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, FormatError) as error:
        checked.problems.append(f"the proof is not as documented: {type(error).__name__}: {error}")
    return checked
