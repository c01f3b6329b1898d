"""Heads on their way out of the house: appended to a file that somebody else keeps.

Knows nothing of the log.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from freehold.errors import LedgerError
from freehold.provenance.heads import Head


def publish(path: Path, head: Head) -> None:
    """Appends a head as one line of JSON and waits until it is on the disk.

    Raises:
        LedgerError: the file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(json.dumps(head.published()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        hint = "set provenance.publish_heads to a file that can be written"
        raise LedgerError(f"can't publish a head to {path}: {error.strerror}", hint=hint) from None
