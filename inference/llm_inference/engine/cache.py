"""A preallocated KV cache of rows, one row for each sequence, in the shape transformers asks for.

Knows tensors and positions. Does not know sequences or requests: before each forward pass it is
told which rows take part and where their tokens go.
"""

import mmap

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class RowLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, each (rows, heads, max_length, head_dim)."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, window: "Window") -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self._window = window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the rows were allocated with the cache."""

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *_args: object,
        **_kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new states, each (rows, heads, tokens, head_dim); views of all that is seen.

        The views are (rows, heads, span, head_dim). What lies beyond a row's own length in them
        is stale but finite, and the attention mask hides it.
        """
        window = self._window
        keys = self.keys[window.first : window.end, :, : window.span]
        values = self.values[window.first : window.end, :, : window.span]
        if window.start is not None:
            end = window.start + key_states.shape[2]
            keys[:, :, window.start : end] = key_states
            values[:, :, window.start : end] = value_states
        else:
            keys[window.rows, :, window.positions] = key_states[:, :, 0]
            values[window.rows, :, window.positions] = value_states[:, :, 0]
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        """Length and offset of the keys that `update` returns."""
        return self._window.span, 0

    def get_seq_length(self) -> int:
        """Tokens before the current ones; positions are always given, so this only informs."""
        return self._window.start or 0

    def get_max_length(self) -> int:
        """Longest sequence a row holds."""
        return self.keys.shape[2]


class Window:
    """Which part of the cache a forward pass reads and writes.

    Rows `first` .. `end`-1 take part and see positions 0 .. `span`-1. Either all of them write
    their tokens from `start` on, or each its single token at its own of `positions`.
    """

    def __init__(self) -> None:
        self.first, self.end, self.span = 0, 0, 0
        self.start: int | None = None
        self.rows = self.positions = torch.empty(0, dtype=torch.long)


class RowCache(Cache):  # type: ignore[misc]
    """KV cache of `rows` sequences of up to `max_length` tokens.

    Args:
        shapes: (heads, key_dim, value_dim) of each layer.
        rows: sequences held at once.
        max_length: tokens of one sequence.
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(
        self,
        *,
        shapes: list[tuple[int, int, int]],
        rows: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.rows = rows
        self._reach = 0  # positions that any row was ever written to
        self._window = Window()
        layers = [
            RowLayer(
                _zeros((rows, heads, max_length, key_dim), dtype, device),
                _zeros((rows, heads, max_length, value_dim), dtype, device),
                self._window,
            )
            for heads, key_dim, value_dim in shapes
        ]
        super().__init__(layers=layers)

    @staticmethod
    def bytes_per_token(shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> int:
        """Bytes one token takes in all layers together."""
        return sum(heads * (k + v) for heads, k, v in shapes) * dtype.itemsize

    def open_prefill(self, row: int, start: int, tokens: int) -> None:
        """The next forward pass writes `tokens` tokens of `row` from `start` on."""
        window = self._window
        window.first, window.end, window.span = row, row + 1, start + tokens
        window.start = start
        self._reach = max(self._reach, window.span)

    def open_decode(self, first: int, positions: torch.Tensor, span: int) -> None:
        """The next forward pass writes one token for each row from `first` on.

        Args:
            first: first row.
            positions: (rows,) int64, where each row's token goes.
            span: positions to read, more than the largest of `positions`.
        """
        window = self._window
        window.first, window.end, window.span = first, first + len(positions), span
        self._reach = max(self._reach, span)
        if len(positions) == 1:
            window.start = int(positions[0])
            return
        window.start, window.positions = None, positions
        window.rows = torch.arange(len(positions), device=positions.device)

    def clear(self, row: int) -> None:
        """Zero what was ever written to a row."""
        for layer in self.layers:
            layer.keys[row, :, : self._reach] = 0
            layer.values[row, :, : self._reach] = 0

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row to another."""
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]


def _zeros(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Zeros; on the cpu, memory that the kernel gives page by page as rows grow into it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = dtype.itemsize
    for dimension in shape:
        size *= dimension
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(shape)
