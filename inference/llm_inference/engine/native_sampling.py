"""Choosing tokens in the native library: `inference/native/sampling.h` in ctypes.

The same choices as `sampling.choose` makes of torch's tensors, for logits in the library's memory.
Knows what of a draw is the same from step to step. Does not know the arithmetic: that is the
library's.
"""

import ctypes
from array import array
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_uint32, c_uint64, c_void_p
from typing import Any, ClassVar

from llm_inference.engine.arrays import Array
from llm_inference.engine.step import Choice, Draw

_WORD_BITS = 32


class _Draw(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("biased", c_void_p),
        ("biases", c_void_p),
        ("biased_count", c_int64),
        ("seen", c_void_p),
        ("counts", c_void_p),
        ("seen_count", c_int64),
        ("repetition", c_float),
        ("frequency", c_float),
        ("presence", c_float),
        ("temperature", c_float),
        ("mask", c_void_p),
        ("top_k", c_int64),
        ("top_p", c_float),
        ("min_p", c_float),
        ("seed", c_uint64),
        ("step", c_uint64),
        ("told", c_int64),
        ("token", c_int64),
        ("top_tokens", c_void_p),
        ("top_logprobs", c_void_p),
        ("logprob", c_float),
    ]


class _Prepared:
    """A draw as the library wants it; lives as long as the draw, and grows with its tokens."""

    def __init__(self, draw: Draw, vocabulary: int) -> None:
        sampling = draw.sampling
        self._biased = array("q", sampling.logit_bias.keys())
        self._biases = array("f", sampling.logit_bias.values())
        self._seen, self._counts = array("q"), array("f")
        self._places: dict[int, int] = {}
        self._counted = 0
        if sampling.repetition_penalty != 1.0:
            for token in dict.fromkeys(draw.prompt):
                self._see(token)
        words = -(-vocabulary // _WORD_BITS)
        self._mask = (c_uint32 * words)() if draw.matcher is not None else None
        told = -1 if draw.logprobs is None else min(draw.logprobs, vocabulary)
        self._top_tokens, self._top_logprobs = array("q", [0] * told), array("f", [0.0] * told)
        self.structure = _Draw(
            biased=_address(self._biased),
            biases=_address(self._biases),
            biased_count=len(self._biased),
            repetition=sampling.repetition_penalty,
            frequency=sampling.frequency_penalty,
            presence=sampling.presence_penalty,
            temperature=0.0 if sampling.greedy else sampling.temperature,
            mask=None if self._mask is None else ctypes.addressof(self._mask),
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            seed=draw.seed & 0xFFFFFFFFFFFFFFFF,
            told=told,
            top_tokens=_address(self._top_tokens),
            top_logprobs=_address(self._top_logprobs),
        )

    def update(self, draw: Draw) -> None:
        """Bring it to the draw's step."""
        structure = self.structure
        structure.step = draw.step
        if draw.matcher is not None and self._mask is not None:
            draw.matcher.write_mask(structure.mask, ctypes.sizeof(self._mask))
        if draw.penalizes:
            # A step that failed is run again, and its tokens count once.
            for token in draw.tokens[self._counted :]:
                self._counts[self._see(token)] += 1.0
            self._counted = len(draw.tokens)
            structure.seen, structure.counts = _address(self._seen), _address(self._counts)
            structure.seen_count = len(self._seen)

    def top(self) -> tuple[tuple[int, float], ...]:
        """The most likely tokens of the last step and their log probabilities."""
        return tuple(zip(self._top_tokens, self._top_logprobs, strict=True))

    def _see(self, token: int) -> int:
        """Where a token's count is."""
        place = self._places.setdefault(token, len(self._seen))
        if place == len(self._seen):
            self._seen.append(token)
            self._counts.append(0.0)
        return place


class NativeSampler:
    """Chooses tokens of logits in memory.

    Args:
        library: the native library.
        vocabulary: width of the logits.
        threads: that rows are shared out among, as `NativeDecoder.threads` gives them; None for
            the caller's own.

    Raises:
        MemoryError: there is no memory for it.
    """

    def __init__(
        self, library: ctypes.CDLL, *, vocabulary: int, threads: int | None = None
    ) -> None:
        library.sampler_open.argtypes = [c_void_p, c_int64]
        library.sampler_open.restype = c_void_p
        library.sampler_close.argtypes = [c_void_p]
        library.sampler_close.restype = None
        library.sampler_likeliest.argtypes = [c_void_p, c_void_p, c_int64, c_void_p]
        library.sampler_likeliest.restype = None
        library.sampler_choose.argtypes = [c_void_p, c_void_p, c_int64, c_void_p]
        library.sampler_choose.restype = None
        self._library, self._vocabulary = library, vocabulary
        self._handle = library.sampler_open(threads, vocabulary)
        if not self._handle:
            raise MemoryError("the sampler's memory cannot be had")

    def choose(self, logits: Array, draws: Sequence[Draw]) -> list[Choice | None]:
        """The next token of each row of float32 `logits` (rows, vocabulary).

        None where they are not finite.

        Raises:
            ValueError: there is not a row for each draw.
        """
        rows = len(draws)
        if logits.shape != (rows, self._vocabulary):
            raise ValueError(f"logits of shape {logits.shape} for {rows} draws")
        if all([draw.plain for draw in draws]):  # noqa: C419 - a list is the faster
            tokens = (c_int64 * rows)()
            self._library.sampler_likeliest(self._handle, logits.address, rows, tokens)
            return [Choice(token) if token >= 0 else None for token in tokens]
        prepared = [self._prepare(draw) for draw in draws]
        structures = (_Draw * rows)(*(each.structure for each in prepared))
        self._library.sampler_choose(self._handle, logits.address, rows, structures)
        return [
            _choice(structure, each) for structure, each in zip(structures, prepared, strict=True)
        ]

    def _prepare(self, draw: Draw) -> _Prepared:
        memory = draw.memory
        if not isinstance(memory, _Prepared):
            draw.memory = memory = _Prepared(draw, self._vocabulary)
        memory.update(draw)
        return memory

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.sampler_close(self._handle)
            self._handle = None


def _address(numbers: "array[Any]") -> int:
    return numbers.buffer_info()[0]


def _choice(structure: _Draw, prepared: _Prepared) -> Choice | None:
    if structure.token < 0:
        return None
    if structure.told < 0:
        return Choice(structure.token)
    return Choice(structure.token, structure.logprob, prepared.top())
