"""The footer of a Parquet file: rows, column names and key-value metadata. Data pages are not read.

FileMetaData in Thrift's compact protocol (https://parquet.apache.org/docs/file-format/metadata/,
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md). Every length is checked against
the bytes that are left, and depth is bounded. Knows nothing of licences.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.errors import FormatError

MAGIC = b"PAR1"
MAX_FOOTER = 64 << 20
MAX_DEPTH = 16
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


@dataclass(frozen=True, slots=True)
class Footer:
    """What a Parquet file says of itself."""

    rows: int
    columns: tuple[str, ...]
    metadata: dict[str, str]
    created_by: str


def read_footer(path: Path) -> Footer:
    """Read it.

    Raises:
        FormatError: no Parquet file, or a footer that makes no sense.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < 12 or file.read(4) != MAGIC:
            raise FormatError(f"{path.name} is no Parquet file")
        file.seek(size - 8)
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != MAGIC or length > min(size - 12, MAX_FOOTER):
            raise FormatError(f"{path.name}: its footer makes no sense", hint="truncated, or encrypted")
        file.seek(size - 8 - length)
        fields = _Reader(file.read(length), path.name).struct(0)
    columns = [_text(item.get(4)) for item in _list(fields.get(2)) if isinstance(item, dict)]
    pairs = [item for item in _list(fields.get(5)) if isinstance(item, dict)]
    rows = fields.get(3)
    return Footer(
        rows if isinstance(rows, int) and rows >= 0 else 0,
        tuple(name for name in columns[1:] if name),
        {_text(item.get(1)): _text(item.get(2)) for item in pairs},
        _text(fields.get(6)),
    )


class _Reader:
    """A cursor over compact Thrift; structs become dictionaries by field number."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data, self._at, self._name = data, 0, name

    def struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            delta, kind = head >> 4, head & 15
            number = number + delta if delta else self._zigzag()
            fields[number] = self._value(kind, depth + 1, inside=False)
        return fields

    def _value(self, kind: int, depth: int, *, inside: bool) -> Any:
        if depth > MAX_DEPTH:
            raise self._broken("nested too deep")
        if kind in (_TRUE, _FALSE):
            return self._byte() == 1 if inside else kind == _TRUE
        if kind == _BYTE:
            return self._byte()
        if kind in (_I16, _I32, _I64):
            return self._zigzag()
        if kind == _DOUBLE:
            return self._take(8)
        if kind == _BINARY:
            return self._take(self._varint())
        if kind in (_LIST, _SET):
            return self._items(depth)
        if kind == _STRUCT:
            return self.struct(depth)
        raise self._broken(f"unknown type {kind}")

    def _items(self, depth: int) -> list[Any]:
        head = self._byte()
        count, kind = head >> 4, head & 15
        count = self._varint() if count == 15 else count
        if count > len(self._data) - self._at:  # every item takes a byte at least
            raise self._broken(f"a list of {count} items")
        return [self._value(kind, depth + 1, inside=True) for _ in range(count)]

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise self._broken("a number without end")

    def _byte(self) -> int:
        return self._take(1)[0]

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise self._broken("it ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def _broken(self, why: str) -> FormatError:
        return FormatError(f"{self._name}: its footer makes no sense: {why}")


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _text(found: Any) -> str:
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else ""
