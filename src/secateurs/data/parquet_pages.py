"""What the pages of a parquet file say that they unpack to, before anything is unpacked.

The footer tells where the pages of a column begin, and each page begins with a header in Thrift's compact protocol:
field 2 is its unpacked size, field 3 its size in the file. pyarrow takes memory by these headers, so the footer's own
totals, which anybody can write, are not relied upon.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)
_DEEPEST = 8
_UNPACKED, _PACKED = 2, 3


def pages(file: Path, columns: Collection[str]) -> Iterator[int]:
    """Unpacked bytes of every page of these columns.

    Raises:
        OSError: the file cannot be read, or a page's header is damaged.
        pyarrow.ArrowException: the footer is damaged.
    """
    import pyarrow.parquet as pq

    footer = pq.read_metadata(file)
    with open(file, "rb") as content:
        for group in range(footer.num_row_groups):
            for number in range(footer.num_columns):
                column = footer.row_group(group).column(number)
                if column.path_in_schema.partition(".")[0] in columns:
                    starts = (column.dictionary_page_offset, column.data_page_offset)
                    start = min(place for place in starts if place)
                    yield from _pages(content, start, start + column.total_compressed_size)


def _pages(content: IO[bytes], place: int, end: int) -> Iterator[int]:
    while place < end:
        content.seek(place)
        header = _Header(content)
        unpacked, packed = header.sizes.get(_UNPACKED, -1), header.sizes.get(_PACKED, -1)
        if unpacked < 0 or packed < 0:
            raise OSError(None, f"the page at byte {place} has no size")
        yield unpacked
        place = content.tell() + packed


class _Header:
    """A struct of Thrift's compact protocol, read to its end; ``sizes``: its whole numbers by field."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content
        self.sizes: dict[int, int] = {}
        self._struct(0)

    def _byte(self) -> int:
        found = self._content.read(1)
        if not found:
            raise OSError(None, "a page is cut off")
        return found[0]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise OSError(None, "a page's header holds no number where one should be")

    def _struct(self, depth: int) -> None:
        field = 0
        while (byte := self._byte()) != _STOP:
            zigzag = self._varint() if byte < 16 else 0
            field = (zigzag >> 1) ^ -(zigzag & 1) if byte < 16 else field + (byte >> 4)
            value = self._value(byte & 15, depth)
            if depth == 0 and value is not None:
                self.sizes[field] = value

    def _value(self, kind: int, depth: int, *, inside: bool = False) -> int | None:
        """The value, where it is a whole number; others are gone past."""
        if kind in (_I16, _I32, _I64):
            number = self._varint()
            return (number >> 1) ^ -(number & 1)
        if kind in (_TRUE, _FALSE) and not inside:
            return None
        if kind in (_TRUE, _FALSE, _BYTE):
            self._byte()
        elif kind == _DOUBLE:
            self._content.seek(8, 1)
        elif kind == _BINARY:
            self._content.seek(self._varint(), 1)
        elif kind == _STRUCT and depth < _DEEPEST:
            self._struct(depth + 1)
        else:  # page headers hold neither lists nor maps
            raise OSError(None, "a page's header is damaged")
        return None
