"""A decoder on the processors, by the native library: forward passes over prompts and batches.

Knows tokens, rows and logits. Does not know requests or when to run what: that is the scheduler's.
"""

from collections.abc import Sequence

from llm_inference.engine import machine, native
from llm_inference.engine.arrays import ITEM_BYTES, Array
from llm_inference.engine.decoder import Decoder
from llm_inference.engine.native_sampling import NativeSampler
from llm_inference.engine.step import Choice, Draw

# Enough for the arithmetic to outweigh the reading of the weights; more only delays others' steps.
_PREFILL_CHUNK = 128


class CpuRunner:
    """Runs a decoder over the rows of a preallocated cache.

    Args:
        decoder: one that is `supported`.
        rows: sequences the cache holds.
        max_length: tokens of one sequence.
        threads: that compute; as many as this process may use processors by default.
    """

    prefill_chunk = _PREFILL_CHUNK
    asynchronous = False

    def __init__(
        self, decoder: Decoder[Array], *, rows: int, max_length: int, threads: int | None = None
    ) -> None:
        self.rows = rows
        self._decoder = native.NativeDecoder(
            decoder,
            rows=rows,
            max_length=max_length,
            most_tokens=max(rows, self.prefill_chunk),
            threads=threads or machine.processors(),
        )
        self._sampler = NativeSampler(
            self._decoder.library, vocabulary=decoder.vocabulary, threads=self._decoder.threads
        )

    @staticmethod
    def supported(decoder: Decoder[Array]) -> bool:
        """Whether this processor, the library and the decoder suit each other."""
        return native.supported(decoder)

    @staticmethod
    def bytes_per_token(decoder: Decoder[Array]) -> int:
        """Bytes of cache that one token takes."""
        heads = len(decoder.layers) * decoder.kv_heads
        return heads * 2 * decoder.head_dim * ITEM_BYTES[decoder.embedding.dtype]

    def prefill(
        self, row: int, tokens: Sequence[int], start: int, draw: Draw | None
    ) -> Choice | None:
        """Read `tokens` at positions `start`... into `row`; with `draw`, choose the next token."""
        logits = self._decoder.step([(row, start, len(tokens))], tokens, logits=draw is not None)
        return None if draw is None else self._sampler.choose(logits, [draw])[0]

    def decode(
        self, first_row: int, tokens: Sequence[int], positions: Sequence[int], draws: Sequence[Draw]
    ) -> Sequence[Choice | None]:
        """One step for rows `first_row`...: write each token at its position, choose the next."""
        spans = [(first_row + row, position, 1) for row, position in enumerate(positions)]
        return self._sampler.choose(self._decoder.step(spans, tokens), draws)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of row `source` to row `target`."""
        self._decoder.copy(source, target, length)

    def clear(self, row: int) -> None:
        """Nothing to do: what a sequence has not written itself is never read."""
