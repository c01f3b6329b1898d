"""An archive whose every byte is accounted for: a ZIP file that anybody can open, with one possible form for its contents.

Members are stored, not compressed, in a fixed order, with a fixed date; what is read is written again and compared,
so a byte that was changed between or inside the headers is found as well as one in the contents. Knows nothing of
what members mean.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence

from freehold.errors import LedgerError

Member = tuple[str, bytes]

MOST_BYTES = 1 << 31
_LOCAL = struct.Struct("<4s5H3I2H")
_MAGIC = b"PK\x03\x04"
_DATE = (1980, 1, 1, 0, 0, 0)


def pack(members: Sequence[Member]) -> bytes:
    """The archive of these members.

    Raises:
        LedgerError: they are too many bytes.
    """
    if sum(len(data) for _, data in members) > MOST_BYTES:
        raise LedgerError(f"a pack holds at most {MOST_BYTES:,} bytes", hint="choose fewer records")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name, _DATE)
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def unpack(data: bytes) -> tuple[list[Member], list[str]]:
    """The members that can be read, and what is wrong with the archive around them, with the byte where it begins."""
    members: list[Member] = []
    at = 0
    while data[at : at + 4] == _MAGIC and at + _LOCAL.size <= len(data):
        *_, stored, size, name_size, extra = _LOCAL.unpack_from(data, at)
        begin = at + _LOCAL.size + name_size + extra
        if extra or stored != size or begin + size > len(data):
            return members, [f"the header of member {len(members) + 1} is damaged (byte {at})"]
        name = data[at + _LOCAL.size : begin].decode("utf-8", "replace")
        members.append((name, data[begin : begin + size]))
        at = begin + size
    return members, _around(data, members, at)


def _around(data: bytes, members: Sequence[Member], end: int) -> list[str]:
    """What is not as `pack` writes it, contents aside."""
    if not members:
        return ["this is no pack: it does not begin with a member (byte 0)"]
    try:
        expected = pack(members)
    except (ValueError, UnicodeError):
        return ["a member's name is damaged"]
    if expected == data:
        return []
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, data, strict=False)) if a != b), min(len(expected), len(data))
    )
    if at >= end:
        return [f"the directory at the archive's end is damaged (byte {at})"]
    return [f"the header of {_member_at(members, at)} is damaged (byte {at})"]


def _member_at(members: Sequence[Member], at: int) -> str:
    end = 0
    for name, content in members:
        end += _LOCAL.size + len(name.encode()) + len(content)
        if at < end:
            return name
    return members[-1][0]
