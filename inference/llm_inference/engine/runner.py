"""A causal language model and its row cache: forward passes over prompts and over batches.

Knows tensors. Does not know requests or when to run what: that is the scheduler's.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from llm_inference.engine.cache import RowCache
from llm_inference.engine.sampling import choose
from llm_inference.engine.step import Choice, Draw

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Keys are read in whole blocks, so that their number changes rarely from step to step.
_SPAN_BLOCK = 32
_PREFILL_CHUNK = {"cpu": 256, "cuda": 2048}

Mask = torch.Tensor | dict[str, torch.Tensor]


class CausalRunner:
    """Runs a transformers causal language model over the rows of a preallocated cache.

    Args:
        model: an AutoModelForCausalLM model in eval mode.
        cache: its cache.
        windows: sliding attention window of each kind of layer in the model's `layer_types`,
            None for full attention.
    """

    def __init__(
        self, *, model: "PreTrainedModel", cache: RowCache, windows: dict[str, int | None]
    ) -> None:
        self._model = model
        self._cache = cache
        self._windows = windows
        self._device: torch.device = model.device
        self._dtype: torch.dtype = model.dtype
        self.prefill_chunk = _PREFILL_CHUNK[self._device.type]
        self.rows = cache.rows
        self.asynchronous = self._device.type == "cuda"

    @torch.inference_mode()
    def prefill(
        self, row: int, tokens: Sequence[int], start: int, draw: Draw | None
    ) -> Choice | None:
        """Read `tokens` at positions `start`... into `row`; with `draw`, choose the next token."""
        self._cache.open_prefill(row, start, len(tokens))
        positions = torch.arange(start, start + len(tokens), device=self._device).unsqueeze(0)
        logits = self._forward(
            torch.tensor([list(tokens)], device=self._device),
            positions,
            span=start + len(tokens),
        )
        return None if draw is None else choose(logits, [draw])[0]

    @torch.inference_mode()
    def decode(
        self, first_row: int, tokens: Sequence[int], positions: Sequence[int], draws: Sequence[Draw]
    ) -> Sequence[Choice | None]:
        """One step for rows `first_row`...: write each token at its position, choose the next."""
        longest = max(positions) + 1
        span = min(-(-longest // _SPAN_BLOCK) * _SPAN_BLOCK, self._cache.get_max_length())
        at = torch.tensor(positions, device=self._device)
        self._cache.open_decode(first_row, at, span)
        logits = self._forward(
            torch.tensor(tokens, device=self._device).unsqueeze(1), at.unsqueeze(1), span=span
        )
        return choose(logits, draws)

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of row `source` to row `target`."""
        self._cache.move(source, target, length)

    @torch.inference_mode()
    def clear(self, row: int) -> None:
        """Zero what `row` holds: a masked NaN is still a NaN."""
        self._cache.clear(row)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, *, span: int) -> torch.Tensor:
        """Logits (rows, vocabulary) of the last of `ids` (rows, tokens) at `positions`."""
        output = self._model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self._mask(positions, span),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _mask(self, positions: torch.Tensor, span: int) -> Mask:
        """Additive masks (rows, 1, tokens, span), one for each kind of attention if there are two.

        transformers takes a mask of four dimensions as it is.
        """
        masks = {
            kind: _causal_mask(positions, span, window, self._dtype)
            for kind, window in self._windows.items()
        }
        return next(iter(masks.values())) if len(masks) == 1 else masks


def _causal_mask(
    positions: torch.Tensor, span: int, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """0 where a token at one of `positions` (rows, tokens) sees a key, the least number elsewhere.

    A token sees keys up to its own position, and with a `window` only the last `window` of them.
    """
    keys = torch.arange(span, device=positions.device)
    at = positions.unsqueeze(-1)
    hidden = keys > at
    if window is not None:
        hidden |= keys <= at - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min).unsqueeze(1)
