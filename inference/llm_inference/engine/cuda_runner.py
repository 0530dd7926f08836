"""A decoder and its cache on a CUDA device: prompts eagerly, decode steps as captured graphs.

A decode step is hundreds of kernels of a few microseconds each; launched one by one the device
would wait for the host. A step is therefore captured once for each of a few batch sizes, and
replayed: tokens, rows and lengths are read from the device. A size is captured when it is needed
the first time, in some hundredths of a second. Only token ids come back where nothing but the
most likely token is asked for.

Knows tensors, graphs and the order of host and device. Does not know requests or when to run what.
"""

from collections.abc import Iterator, Sequence
from typing import overload

import torch

from llm_inference.engine.cuda_forward import Forward, StepTensors
from llm_inference.engine.cuda_kernels import Kernels, supported
from llm_inference.engine.sampling import choose
from llm_inference.engine.step import Choice, Draw
from llm_inference.engine.torch_decoder import Decoder

__all__ = ["CudaRunner", "cache_bytes_per_token", "supported"]

# Batch sizes that are captured; a step is run with the next larger one.
_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
_SIZE_STEP = 64
_PREFILL_CHUNK = 2048
# Prompts, or what is left of them, that are run as a captured step is: launched one by one, the
# kernels of a short prompt take the host longer than the device. A long one keeps the device busy,
# and its attention wants to read keys once for many tokens.
_SHORT_PROMPT = 256
# Batches up to this size stay as they are for many steps, mostly.
_AHEAD_ROWS = 8


def cache_bytes_per_token(decoder: Decoder) -> int:
    """Bytes that one token takes in the cache, in all layers together."""
    return 2 * len(decoder.layers) * decoder.kv_heads * decoder.head_dim * decoder.dtype.itemsize


class CudaRunner:
    """Runs a decoder over the rows of a preallocated cache; satisfies `step.Runner`.

    Args:
        decoder: on a CUDA device; `supported` says which.
        rows: sequences the cache holds.
        max_length: positions of each.

    Raises:
        CudaModuleError: the kernels cannot be compiled here.
        ValueError: the decoder is not supported.
    """

    prefill_chunk = _PREFILL_CHUNK
    asynchronous = True

    @torch.inference_mode()
    def __init__(self, decoder: Decoder, *, rows: int, max_length: int) -> None:
        if not supported(decoder):
            raise ValueError("the decoder's shape is not one that the CUDA kernels can run")
        self.rows = rows
        self._device = decoder.device
        self._cache = torch.empty(
            (len(decoder.layers), 2, rows, decoder.kv_heads, max_length, decoder.head_dim),
            dtype=decoder.dtype,
            device=decoder.device,
        )
        most = max(_batch_size(rows), _SHORT_PROMPT)
        kernels = Kernels(decoder, rows=most, max_length=max_length)
        self._step = StepTensors(decoder, most)
        self._forward = Forward(decoder, kernels, self._cache, self._step)
        self._kernels = kernels
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._stream = torch.cuda.Stream(decoder.device)  # type: ignore[no-untyped-call]
        # Pinned, so that copies need not wait.
        self._inputs = torch.zeros((3, most), dtype=torch.int32, pin_memory=True)
        self._chosen = [torch.zeros(most, dtype=torch.int32, pin_memory=True) for _ in range(2)]
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._last: _Pending | None = None
        self._ahead: _Pending | None = None
        # Whether the batch is that of the step before, so that it may well be that of the next.
        self._steady = False
        self._max_length = max_length

    @torch.inference_mode()
    def warm(self, sizes: Sequence[int] = (1,)) -> None:
        """Load the libraries' kernels and capture the steps of some batch sizes."""
        self._forward.prefill(0, torch.zeros(16, dtype=torch.int32, device=self._device), 0)
        for size in sizes:
            self._capture(_batch_size(size))
        torch.cuda.synchronize(self._device)

    @torch.inference_mode()
    def prefill(
        self, row: int, tokens: Sequence[int], start: int, draw: Draw | None
    ) -> Choice | None:
        """Read `tokens` at positions `start`... into `row`; with `draw`, choose the next token."""
        self._steady, self._ahead = False, None
        count = len(tokens)
        if count <= _SHORT_PROMPT:
            # As a step of many tokens of one row, each of which sees those before it.
            self._put_inputs(tokens, [row] * count, range(start, start + count))
            self._run(count)
            logits, chosen = self._step.logits[count - 1 : count], self._step.chosen[count - 1]
        else:
            ids = torch.tensor(tokens, dtype=torch.int32).to(self._device, non_blocking=True)
            logits, chosen = self._forward.prefill(row, ids, start), self._step.chosen[0]
            self._kernels.argmax(self._step.chosen, logits)
        if draw is None:
            return None
        return _choice(int(chosen)) if draw.plain else choose(logits, [draw])[0]

    @torch.inference_mode()
    def decode(
        self, first_row: int, tokens: Sequence[int], positions: Sequence[int], draws: Sequence[Draw]
    ) -> Sequence[Choice | None]:
        """One step for rows `first_row`...: write each token at its position, choose the next.

        Where all draws are plain this returns while the device works, and reading the result
        waits for it. Of a small batch the step after it is begun as well, on the guess that the
        batch stays as it is: the device need not wait until the host has read this one. A wrong
        guess costs the time of that step and nothing else: what it writes to the cache lies
        behind all that is read.
        """
        plain = all(draw.plain for draw in draws)
        if plain and self._ahead is not None and self._ahead.is_for(first_row, tokens, positions):
            step = self._ahead
        else:
            self._put_inputs(tokens, range(first_row, first_row + len(tokens)), positions)
            self._run(len(tokens))
            if not plain:
                self._steady, self._ahead = False, None
                return choose(self._step.logits[: len(tokens)], draws)
            step = self._result(first_row, positions)
        self._last, self._ahead = step, None
        steady, self._steady = self._steady, True
        if steady and len(tokens) <= _AHEAD_ROWS and max(positions) + 1 < self._max_length:
            self._kernels.advance(self._step.inputs, self._step.chosen, len(tokens))
            self._run(len(tokens))
            self._ahead = self._result(first_row, [at + 1 for at in positions], after=step)
        return step

    def _put_inputs(
        self, tokens: Sequence[int], rows: Sequence[int], positions: Sequence[int]
    ) -> None:
        # What the device still reads from the host's memory, and writes to it, comes first.
        self._copied.synchronize()
        if self._last is not None:
            self._last.settle()
        count, inputs = len(tokens), self._inputs
        inputs[:, :count] = torch.tensor([[*tokens], [*rows], [*positions]], dtype=torch.int32)
        inputs[2, count : _batch_size(count)] = -1
        self._step.inputs.copy_(inputs, non_blocking=True)
        self._copied.record()

    def _run(self, count: int) -> None:
        """Run a step of the first `count` inputs."""
        size = _batch_size(count)
        if (graph := self._graphs.get(size)) is not None:
            graph.replay()
        else:
            # The step itself warms what its capture needs.
            self._forward.decode(size)
            self._capture(size)

    def _result(
        self, first_row: int, positions: Sequence[int], after: "_Pending | None" = None
    ) -> "_Pending":
        """The choices of the step that was begun last."""
        self._chosen.reverse()
        self._chosen[0].copy_(self._step.chosen, non_blocking=True)
        return _Pending(self._chosen[0], first_row, positions, after)

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of row `source` to row `target`."""
        self._steady, self._ahead = False, None
        self._cache[:, :, target, :, :length] = self._cache[:, :, source, :, :length]

    def clear(self, row: int) -> None:
        """Nothing to do: what a sequence has not written itself is never read."""

    def _capture(self, size: int) -> None:
        """Capture the step of a batch of `size`; what it would compute is computed by nobody."""
        if size in self._graphs:
            return
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Other threads may use the device meanwhile: loading, metrics.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._forward.decode(size)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._graphs[size] = graph


class _Pending(Sequence[Choice | None]):
    """The choices of a step that may still be running; reading them waits for it.

    Args:
        chosen: where the device writes them.
        first_row: of the step.
        positions: of its tokens.
        after: the step whose choices are its tokens, if the host has not said them.
    """

    def __init__(
        self,
        chosen: torch.Tensor,
        first_row: int,
        positions: Sequence[int],
        after: "_Pending | None",
    ) -> None:
        self._chosen, self._first_row, self._positions = chosen, first_row, list(positions)
        self._after = after
        self._choices: list[Choice | None] | None = None
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record()

    def is_for(self, first_row: int, tokens: Sequence[int], positions: Sequence[int]) -> bool:
        """Whether it ran what is asked for: the choices of the step before, one position on."""
        if self._after is None or first_row != self._first_row:
            return False
        chosen = [choice.token if choice else -1 for choice in self._after]
        self._after = None  # lest every step kept all before it
        return list(positions) == self._positions and list(tokens) == chosen

    def settle(self) -> list[Choice | None]:
        """Wait for the step and take its choices from the memory that the next one writes to."""
        if self._choices is None:
            self._done.synchronize()
            self._choices = [_choice(token) for token in self._chosen[: len(self)].tolist()]
        return self._choices

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Choice | None: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Choice | None]: ...
    def __getitem__(self, index: int | slice) -> Choice | Sequence[Choice | None] | None:
        return self.settle()[index]

    def __iter__(self) -> Iterator[Choice | None]:
        return iter(self.settle())


def _choice(token: int) -> Choice | None:
    return None if token < 0 else Choice(token)


def _batch_size(count: int) -> int:
    """The smallest batch size to capture that holds `count`."""
    for size in _SIZES:
        if size >= count:
            return size
    return -(-count // _SIZE_STEP) * _SIZE_STEP
