"""Which tokens' keys and values are in the cache already, so that they need not be read again.

Knows token ids and the numbers of cache rows; who calls it copies the rows. Sequences that have
ended leave their rows' contents in further rows of the cache, of which the least recently used is
given up first.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TOKEN_BYTES = 4
_BLOCK = 256 * TOKEN_BYTES
# Copying less is not worth a copy: a prompt's first tokens are often a template's.
_SHORTEST = 16


def key_of(tokens: Iterable[int]) -> bytes:
    """Token ids in a form that is quickly compared, `TOKEN_BYTES` each."""
    return array("i", tokens).tobytes()


def common_tokens(one: bytes, other: bytes) -> int:
    """How many tokens two keys have in common at their beginnings."""
    length = min(len(one), len(other))
    start = 0
    while start < length and one[start : start + _BLOCK] == other[start : start + _BLOCK]:
        start += _BLOCK
    low, high = min(start, length), min(start + _BLOCK, length)
    # What is before `low` is equal, what is up to beyond `high` is not: halve the way between.
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low // TOKEN_BYTES


@dataclass(frozen=True, kw_only=True)
class Source:
    """A row of the cache whose first tokens are known."""

    row: int
    key: bytes


class Prefixes:
    """The rows that keep what ended sequences left.

    Args:
        rows: numbers of the cache rows for this, none for keeping nothing.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self._free = list(rows)
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def find(self, key: bytes, running: Iterable[Source]) -> tuple[int, int] | None:
        """The row that has most of `key`, and how many tokens; None if it is not worth a copy.

        At least one token is always left to be read, for the logits that follow it.

        Args:
            key: of a prompt.
            running: rows of sequences that have not ended.
        """
        most = len(key) // TOKEN_BYTES - 1
        best, best_row = 0, -1
        for row, held in (*self._kept.items(), *((s.row, s.key) for s in running)):
            length = min(common_tokens(key, held), most)
            if length > best:
                best, best_row = length, row
            if best == most:
                break
        if best < min(_SHORTEST, max(1, most)):
            return None
        if best_row in self._kept:
            self._kept.move_to_end(best_row)
        return best_row, best

    def place(self, key: bytes) -> int | None:
        """The row to copy a sequence of `key` to, which from now on holds it; None for no copy."""
        if len(key) < _SHORTEST * TOKEN_BYTES or not (self._free or self._kept):
            return None
        for row, held in self._kept.items():
            common = common_tokens(key, held) * TOKEN_BYTES
            if common == len(key):
                self._kept.move_to_end(row)
                return None
            if common == len(held):
                break
        else:
            row = self._free.pop() if self._free else next(iter(self._kept))
        self._kept[row] = key
        self._kept.move_to_end(row)
        return row

    def drop(self, row: int) -> None:
        """Forget what a row holds."""
        if self._kept.pop(row, None) is not None:
            self._free.append(row)
