"""Which sequence is in which row of the cache.

Rows of running sequences are always 0 .. running-1, so that a batch is a view of the cache and
not a copy; the one sequence in prefill has the next row. When a sequence ends, the last row moves
into its place. Rows beyond the batch keep what ended sequences left, for prompts that begin alike.
"""

import logging
from collections.abc import Iterator

from llm_inference.engine.prefixes import TOKEN_BYTES, Prefixes, Source
from llm_inference.engine.sequence import RunningSequence
from llm_inference.engine.step import Runner

logger = logging.getLogger(__name__)


class Batch:
    """The sequences in the cache's rows, which it moves as they come and go.

    Args:
        runner: whose rows they are.
        size: rows for running sequences.
    """

    def __init__(self, runner: Runner, size: int) -> None:
        self.running: list[RunningSequence] = []
        self.prefilling: RunningSequence | None = None
        self._runner = runner
        self._size = size
        self._prefixes = Prefixes(range(size, runner.rows))

    @property
    def full(self) -> bool:
        """Whether no further sequence can start."""
        return len(self.running) + (self.prefilling is not None) >= self._size

    @property
    def occupied(self) -> int:
        """Rows of sequences that run or are in prefill."""
        return len(self.running) + (self.prefilling is not None)

    def tokens(self) -> int:
        """Tokens in the rows of these sequences; may be called from any thread."""
        sequences = [*self.running, self.prefilling]
        return sum(sequence.cached for sequence in sequences if sequence is not None)

    def begin(self, sequence: RunningSequence) -> int:
        """Let a sequence start in prefill, with what the cache already has of its prompt.

        Returns how many tokens that is.
        """
        self.prefilling = sequence
        found = self._prefixes.find(sequence.key, self._sources())
        if found is None:
            return 0
        row, length = found
        try:
            self._runner.move(row, len(self.running), length)
        except Exception:
            logger.exception("copying a prefix failed: the prompt is read instead")
            self._prefixes.drop(row)
            return 0
        sequence.cached = sequence.reused = length
        return length

    def join(self) -> None:
        """The sequence in prefill is ready to decode."""
        if self.prefilling is None:
            raise RuntimeError("no sequence is in prefill")
        self.running.append(self.prefilling)
        self.prefilling = None

    def leave(self, sequence: RunningSequence, *, keep: bool) -> None:
        """Take a sequence out and close the gap; with `keep`, what it leaves may be used again."""
        if sequence is self.prefilling:
            self._settle(sequence, len(self.running), keep=keep)
            self.prefilling = None
            return
        row = self.running.index(sequence)
        self._settle(sequence, row, keep=keep)
        last = len(self.running) - 1
        if row != last:
            self._runner.move(last, row, self.running[last].cached)
            self.running[row] = self.running[last]
        self.running.pop()
        if self.prefilling is not None and self.prefilling.cached:
            self._runner.move(last + 1, last, self.prefilling.cached)

    def clear(self) -> list[RunningSequence]:
        """Take all sequences out, whatever their rows hold."""
        sequences = [*self.running, *([self.prefilling] if self.prefilling else [])]
        self.running.clear()
        self.prefilling = None
        return sequences

    def _sources(self) -> Iterator[Source]:
        """What running sequences have of their prompts."""
        for row, sequence in enumerate(self.running):
            yield Source(row=row, key=sequence.key[: sequence.cached * TOKEN_BYTES])

    def _settle(self, sequence: RunningSequence, row: int, *, keep: bool) -> None:
        """Keep what a row holds, or clear it of numbers that may not be finite."""
        if not keep:
            self._runner.clear(row)
            return
        target = self._prefixes.place(sequence.history_key())
        if target is None:
            return
        try:
            self._runner.move(row, target, sequence.cached)
        except Exception:
            logger.exception("keeping a prefix failed")
            self._prefixes.drop(target)
