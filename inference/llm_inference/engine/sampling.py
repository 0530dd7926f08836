"""Choosing the next token of each sequence in a batch, each by its own parameters.

Knows logits and parameters. The noise of a draw is a pure function of (seed, step, token id), so
neither the other sequences of a batch, nor the row, nor the device changes what a seed gives.
"""

import math
from collections.abc import Sequence

import torch

from llm_inference.engine.scheduler import Draw

# Candidates looked at before a full sort; top_p rarely reaches further, and if so all are sorted.
_CANDIDATES = 1024
_UINT32 = 0xFFFFFFFF
_UINT64 = 0xFFFFFFFFFFFFFFFF


def choose(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """One token id for each row of `logits` (rows, vocabulary), None where they are not finite."""
    tokens = logits.argmax(dim=-1)
    rows = [row for row, draw in enumerate(draws) if not draw.sampling.greedy]
    if rows:
        index = torch.tensor(rows, device=logits.device)
        chosen = _sample(logits[index].float(), [draws[row] for row in rows])
        tokens = tokens.index_copy(0, index, chosen)
    # The largest logit is NaN if any is, and infinite if one is +inf or all are -inf.
    finite = torch.isfinite(logits.amax(dim=-1))
    pairs = zip(tokens.tolist(), finite.tolist(), strict=True)
    return [token if fine else None for token, fine in pairs]


def _sample(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Token ids (rows,) drawn from float32 `logits` (rows, vocabulary)."""
    column = [draw.sampling.temperature for draw in draws]
    scores = logits / torch.tensor(column, device=logits.device).unsqueeze(1)
    tokens = torch.empty(len(draws), dtype=torch.long, device=logits.device)
    truncated = [row for row, draw in enumerate(draws) if _truncates(draw)]
    free = [row for row, draw in enumerate(draws) if not _truncates(draw)]
    for rows, pick in ((free, _pick_any), (truncated, _pick_likely)):
        if rows:
            index = torch.tensor(rows, device=logits.device)
            tokens[index] = pick(scores[index], [draws[row] for row in rows])
    return tokens


def _truncates(draw: Draw) -> bool:
    return draw.sampling.top_k > 0 or draw.sampling.top_p < 1 or draw.sampling.min_p > 0


def _pick_any(scores: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    ids = torch.arange(scores.shape[1], device=scores.device)
    return (scores + gumbel(draws, ids)).argmax(dim=-1)


def _pick_likely(scores: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Draw among the tokens that top_k, top_p and min_p leave, applied in this order."""
    vocabulary = scores.shape[1]
    width = min(vocabulary, max(_CANDIDATES, *(draw.sampling.top_k for draw in draws)))
    while True:
        values, ids = scores.topk(width, dim=-1)
        kept = _keep(values, scores.logsumexp(dim=-1, keepdim=True), draws)
        # A row that keeps its last candidate may want some beyond it, unless top_k ends there.
        open_ended = torch.tensor(
            [not 0 < draw.sampling.top_k <= width for draw in draws], device=scores.device
        )
        if width == vocabulary or not (kept[:, -1] & open_ended).any():
            break
        width = vocabulary
    noisy = (values + gumbel(draws, ids)).masked_fill(~kept, -math.inf)
    return ids.gather(1, noisy.argmax(dim=-1, keepdim=True)).squeeze(1)


def _keep(values: torch.Tensor, total: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Which candidates stay: bool (rows, width).

    Args:
        values: scores in falling order, (rows, width).
        total: log of the sum of the exponentials of all scores of the row, (rows, 1).
        draws: the parameters, one for each row.
    """
    rows, width = values.shape
    device = values.device

    def column(numbers: list[float]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float32, device=device).unsqueeze(1)

    top_k = column([float(draw.sampling.top_k or width) for draw in draws])
    top_p = column([draw.sampling.top_p for draw in draws])
    floor = column([math.log(p) if (p := draw.sampling.min_p) > 0 else -math.inf for draw in draws])
    kept = torch.arange(width, device=device).expand(rows, width) < top_k
    limited = column([float(draw.sampling.top_k > 0) for draw in draws]) > 0
    inside = values.masked_fill(~kept, -math.inf).logsumexp(dim=-1, keepdim=True)
    probabilities = (values - torch.where(limited, inside, total)).exp()
    before = probabilities.cumsum(dim=-1) - probabilities
    kept &= (before < top_p) | (top_p >= 1)
    kept &= values >= values[:, :1] + floor
    kept[:, 0] = True
    return kept


def gumbel(draws: Sequence[Draw], ids: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float32 (rows, len): a hash of (seed, step, token id).

    Args:
        draws: seed and step of each row.
        ids: int64 token ids, (len,) for all rows or (rows, len).
    """
    keys = [_mix64((draw.seed ^ _mix64(draw.step + 1)) & _UINT64) for draw in draws]
    low = torch.tensor([key & _UINT32 for key in keys], device=ids.device).unsqueeze(1)
    high = torch.tensor([key >> 32 for key in keys], device=ids.device).unsqueeze(1)
    bits = _mix32(_mix32(ids ^ low) ^ high)
    # u is in (0, 1). The draws that win come from small u, where log1p(-u) keeps its precision.
    uniform = (bits.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-uniform)).float()


def _mix64(value: int) -> int:
    """The splitmix64 finaliser: every bit of the result depends on every bit of `value`."""
    value = (value + 0x9E3779B97F4A7C15) & _UINT64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _UINT64
    return value ^ (value >> 31)


def _mix32(value: torch.Tensor) -> torch.Tensor:
    """The 32-bit finaliser of MurmurHash3 on int64 tensors that hold 32 bits."""
    value = value ^ (value >> 16)
    value = (value * 0x85EBCA6B) & _UINT32
    value = value ^ (value >> 13)
    value = (value * 0xC2B2AE35) & _UINT32
    return value ^ (value >> 16)
