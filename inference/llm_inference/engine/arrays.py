"""Numbers in memory by address, type and shape: what weights are where torch is not imported.

An array may lie in several pieces, rows below rows, so that matrices which are multiplied together
need not be copied together. Types have torch's names. Knows memory. Does not know files, or what
the numbers mean.
"""

import ctypes
import math
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
FLOATING = ("float64", "float32", "float16", "bfloat16")


class Piece(NamedTuple):
    """Some rows of an array, contiguous; `owner` is what keeps the memory."""

    address: int
    rows: int
    owner: object


@dataclass(frozen=True, eq=False)
class Array:
    """Numbers in the order of their rows, which are what the first dimension counts.

    Attributes:
        dtype: name of their type, one of `ITEM_BYTES`.
        shape: as of a tensor.
        pieces: where they are; their rows add up to the first dimension, to 1 without one.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]

    @property
    def address(self) -> int:
        """Where all of it lies.

        Raises:
            ValueError: it is in several pieces.
        """
        if len(self.pieces) != 1:
            raise ValueError(f"an array in {len(self.pieces)} pieces has no one address")
        return self.pieces[0].address

    def rows(self, first: int, count: int) -> "Array":
        """Some rows, where they are.

        Raises:
            ValueError: they are not all in one piece.
        """
        at = first
        for piece in self.pieces:
            if at >= 0 and at + count <= piece.rows:
                part = Piece(piece.address + at * self.row_bytes, count, piece.owner)
                return Array(self.dtype, (count, *self.shape[1:]), (part,))
            at -= piece.rows
        raise ValueError(f"rows {first} to {first + count} are not in one piece")

    def views(self) -> list[memoryview]:
        """The bytes of each piece, in order, which keep the memory too.

        Whoever writes to them writes to the array.
        """
        return [_view(piece, piece.rows * self.row_bytes) for piece in self.pieces]


def _view(piece: Piece, size: int) -> memoryview:
    block = (ctypes.c_char * size).from_address(piece.address)
    block.owner = piece.owner  # type: ignore[attr-defined]
    return memoryview(block)


def stack(arrays: Sequence[Array]) -> Array:
    """Arrays of one type and one shape of rows, one below the other; nothing is copied."""
    first = arrays[0]
    rows = sum(each.shape[0] for each in arrays)
    pieces = tuple(piece for each in arrays for piece in each.pieces)
    return Array(first.dtype, (rows, *first.shape[1:]), pieces)


def singles(numbers: Iterable[float]) -> Array:
    """These numbers in float32, (n,)."""
    return _of(array("f", numbers))


def widened(vector: Array, offset: float = 0.0) -> Array:
    """A copy of a short floating point array (n,) in float32, `offset` added.

    Written in Python: matrices take too long.
    """
    content = b"".join(vector.views())
    if vector.dtype == "bfloat16":
        # The upper half of a float32.
        wide = bytearray(2 * len(content))
        wide[2::4], wide[3::4] = content[0::2], content[1::2]
        numbers = array("f", bytes(wide))
    elif vector.dtype == "float16":
        numbers = array("f", struct.unpack(f"<{len(content) // 2}e", content))
    elif vector.dtype == "float64":
        numbers = array("f", array("d", content))
    else:
        numbers = array("f", content)
    return _of(array("f", [number + offset for number in numbers]) if offset else numbers)


def rounded(number: float, dtype: str) -> float:
    """What a number becomes in a floating point type: the nearest there is, ties to even."""
    if dtype == "float64":
        return number
    if dtype == "float16":
        return float(struct.unpack("<e", struct.pack("<e", number))[0])
    single = struct.pack("<f", number)
    if dtype == "bfloat16":
        bits = int.from_bytes(single, "little")
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
        single = bits.to_bytes(4, "little")
    return float(struct.unpack("<f", single)[0])


def _of(numbers: "array[float]") -> Array:
    address, count = numbers.buffer_info()
    return Array("float32", (count,), (Piece(address, count, numbers),))
