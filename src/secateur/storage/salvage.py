"""Rows of a SQLite file whose tree is damaged: read page by page, so that no page costs more than what stands on it.

The format is that of https://www.sqlite.org/fileformat2.html, of tables WITHOUT ROWID in UTF-8.
"""

import contextlib
import mmap
from collections.abc import Iterator

LEAF, INTERIOR = 10, 2
"""First byte of a page that holds rows."""
USUAL_PAGE = 4096
Bytes = bytes | mmap.mmap
Value = bytes | str | None


def salvaged(raw: Bytes) -> Iterator[tuple[Value, ...]]:
    """All rows that stand in the bytes of a file, those of other tables and such that were replaced among them.

    Texts are decoded as far as they can be; of numbers there is None. Whether a row is whole is for others to say.
    """
    size = _page_size(raw)
    for start in range(0, len(raw), size):
        first = start + (100 if start == 0 else 0)
        if raw[first : first + 1] not in (bytes([LEAF]), bytes([INTERIOR])):
            continue
        pointers = first + (8 if raw[first] == LEAF else 12)
        for k in range(int.from_bytes(raw[first + 3 : first + 5])):
            # What is damaged leads anywhere, also beyond the end.
            with contextlib.suppress(IndexError):
                cell = start + int.from_bytes(raw[pointers + 2 * k : pointers + 2 * k + 2])
                yield _row(_payload(raw, cell if raw[first] == LEAF else cell + 4, size))


def _page_size(raw: Bytes) -> int:
    size = int.from_bytes(raw[16:18])
    size = 65536 if size == 1 else size
    return size if size >= 512 and size & (size - 1) == 0 else USUAL_PAGE


def _payload(raw: Bytes, place: int, size: int) -> bytes:
    """What a cell holds: the beginning in the page itself, the rest in a chain of overflow pages."""
    length, place = _varint(raw, place)
    if length > len(raw):
        raise IndexError("longer than the file")
    most, least = (size - 12) * 64 // 255 - 23, (size - 12) * 32 // 255 - 23
    if length <= most:
        return raw[place : place + length]
    fitting = least + (length - least) % (size - 4)
    here = fitting if fitting <= most else least
    parts, left = [raw[place : place + here]], length - here
    follows = int.from_bytes(raw[place + here : place + here + 4])
    while left > 0:
        page = (follows - 1) * size
        if not 0 < page < len(raw):
            raise IndexError("the chain leads out of the file")
        parts.append(raw[page + 4 : page + 4 + min(left, size - 4)])
        left -= size - 4
        follows = int.from_bytes(raw[page : page + 4])
    return b"".join(parts)


def _row(record: bytes) -> tuple[Value, ...]:
    end, place = _varint(record, 0)
    kinds = []
    while place < end:
        kind, place = _varint(record, place)
        kinds.append(kind)
    row: list[Value] = []
    for kind in kinds:
        # Even: bytes; odd: text; less than 12: numbers, of 0 to 8 bytes.
        length = (kind - 12) // 2 if kind >= 12 else (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)[kind]
        part = record[place : place + length]
        row.append(None if kind < 12 else part if kind % 2 == 0 else part.decode(errors="replace"))
        place += length
    return tuple(row)


def _varint(raw: Bytes, place: int) -> tuple[int, int]:
    """A number in seven bits a byte, the ninth with eight; and the place behind it."""
    value = 0
    for k in range(8):
        value = value << 7 | raw[place + k] & 127
        if raw[place + k] < 128:
            return value, place + k + 1
    return value << 8 | raw[place + 8], place + 9
