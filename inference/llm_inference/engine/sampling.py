"""Choosing the next token of each sequence in a batch, each by its own parameters.

Knows logits and parameters. What a draw's randomness is depends on (seed, step) alone, so neither
the other sequences of a batch, nor the row, nor the device changes what a seed gives.

The order is: logit biases, penalties, grammar, temperature, then top_k, top_p and min_p. Tokens
as likely as the last one kept are kept too, so that it does not matter in which order they stand.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import overload

import torch

from llm_inference.engine.penalties import Penalties
from llm_inference.engine.step import Choice, Draw

# Candidates that top_p looks at, and how many times more if it reaches beyond them, which is rare.
_CANDIDATES = 256
_WIDENING = 16
_LARGEST_UNIFORM = 1 - 2.0**-23  # times a float32 sum it stays below that sum


def choose(logits: torch.Tensor, draws: Sequence[Draw]) -> "Choices":
    """The next token of each row of `logits` (rows, vocabulary); None where they are not finite.

    Returns at once where the logits are still being computed by a device; reading what it returns
    waits for them.
    """
    best = logits.max(dim=-1)
    tokens, logprobs = best.indices, None
    if not all([draw.plain for draw in draws]):  # noqa: C419 - a list is the faster
        batch = _batch(tuple(draws), logits.device, logits.shape[1])
        tokens = batch.choose(logits, tokens)
        logprobs = batch.logprobs(logits, tokens)
    # The largest logit is NaN if any is, and infinite if one is +inf or all are -inf.
    tokens = torch.where(torch.isfinite(best.values), tokens, -1)
    return Choices(tokens, logprobs)


class Choices(Sequence[Choice | None]):
    """The choices of a step, read from the device when they are first looked at."""

    def __init__(self, tokens: torch.Tensor, logprobs: "_Logprobs | None") -> None:
        self._tokens = tokens
        self._logprobs = logprobs
        self._read: list[Choice | None] | None = None

    def __len__(self) -> int:
        return self._tokens.shape[0]

    @overload
    def __getitem__(self, index: int) -> Choice | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[Choice | None]: ...
    def __getitem__(self, index: int | slice) -> Choice | list[Choice | None] | None:
        return self._all()[index]

    def _all(self) -> list[Choice | None]:
        if self._read is None:
            tokens: list[int] = self._tokens.tolist()
            read = [Choice(token) if token >= 0 else None for token in tokens]
            if self._logprobs is not None:
                self._logprobs.add_to(read)
            self._read = read
        return self._read


class _Logprobs:
    """Log probabilities of some rows, still on the device.

    Args:
        rows: which rows, and how many most likely tokens each wants.
        chosen: (rows,), of the chosen tokens.
        top: (rows, width) log probabilities, in falling order, and their token ids.
    """

    def __init__(
        self,
        rows: list[tuple[int, int]],
        chosen: torch.Tensor,
        top: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        self._rows, self._chosen, self._top = rows, chosen, top

    def add_to(self, choices: list[Choice | None]) -> None:
        """Give these rows' choices what is known of them."""
        chosen: list[float] = self._chosen.tolist()
        values: list[list[float]] = self._top[0].tolist() if self._top else [[]] * len(chosen)
        ids: list[list[int]] = self._top[1].tolist() if self._top else [[]] * len(chosen)
        for at, (row, width) in enumerate(self._rows):
            choice = choices[row]
            if choice is not None:
                pairs = zip(ids[at][:width], values[at][:width], strict=True)
                choices[row] = Choice(choice.token, chosen[at], tuple(pairs))


@lru_cache(maxsize=8)
def _batch(draws: tuple[Draw, ...], device: torch.device, vocabulary: int) -> "_Batch":
    """What the parameters of these draws are as tensors; the same from step to step."""
    return _Batch(draws, device, vocabulary)


class _Batch:
    """The parameters of a batch's draws as tensors; `n` of its rows need more than an argmax."""

    def __init__(self, draws: tuple[Draw, ...], device: torch.device, vocabulary: int) -> None:
        rows = [row for row, draw in enumerate(draws) if not draw.argmax]
        self._draws = [draws[row] for row in rows]
        self._device = device
        self._vocabulary = vocabulary
        self._all = len(rows) == len(draws)
        self._rows = torch.tensor(rows, dtype=torch.long, device=device)
        self._told = [(row, d.logprobs) for row, d in enumerate(draws) if d.logprobs is not None]
        self._told_rows = torch.tensor([row for row, _ in self._told], device=device)
        self._set_parameters()
        self._set_biases()
        self._set_mask()
        penalized = [row for row, draw in enumerate(self._draws) if draw.penalizes]
        self._penalties = (
            Penalties(penalized, [self._draws[row] for row in penalized], device, vocabulary)
            if penalized
            else None
        )

    def choose(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`tokens` (rows,), the most likely ones, with the `n` rows' own choice in their place."""
        if not self._draws:
            return tokens
        scores = logits.to(torch.float32, copy=True) if self._all else logits[self._rows].float()
        if self._bias is not None:
            scores.index_put_(self._bias[:2], self._bias[2], accumulate=True)
        if self._penalties is not None:
            self._penalties.apply_(scores)
        if self._mask is not None:
            scores.masked_fill_(~self._allowed(self._mask), -torch.inf)
        chosen = scores.argmax(dim=-1)
        if self._samples:
            chosen = torch.where(self._greedy, chosen, self._sample(scores, chosen))
        return chosen if self._all else tokens.index_copy(0, self._rows, chosen)

    def logprobs(self, logits: torch.Tensor, tokens: torch.Tensor) -> _Logprobs | None:
        """Of the chosen `tokens` (rows,) and of the most likely ones, where they are asked for."""
        if not self._told:
            return None
        logits = logits[self._told_rows].float()
        total = logits.logsumexp(dim=-1, keepdim=True)
        chosen = logits.gather(1, tokens[self._told_rows].unsqueeze(1)) - total
        width = min(max(width for _, width in self._told), self._vocabulary)
        top = None
        if width:
            values, ids = logits.topk(width, dim=-1)
            top = (values - total, ids)
        return _Logprobs(self._told, chosen.squeeze(1), top)

    def _set_parameters(self) -> None:
        sampling = [draw.sampling for draw in self._draws]
        self._samples = any(not each.greedy for each in sampling)
        self._greedy = torch.tensor([each.greedy for each in sampling], device=self._device)
        self._temperature = self._column([1.0 if x.greedy else x.temperature for x in sampling])
        # Signed, as torch holds them: 64 bits are 64 bits.
        seeds = [draw.seed & 0xFFFFFFFFFFFFFFFF for draw in self._draws]
        self._seeds = torch.tensor([s - (1 << 64) if s >> 63 else s for s in seeds])
        self._min_p = None
        if any(each.min_p > 0 for each in sampling):
            self._min_p = self._column([each.min_p for each in sampling])
        cut = [
            row
            for row, each in enumerate(sampling)
            if not each.greedy and (each.top_k > 0 or each.top_p < 1)
        ]
        self._cut = _Truncation(cut, self._draws, self._device) if cut else None

    def _set_biases(self) -> None:
        entries = [
            (row, token, bias)
            for row, draw in enumerate(self._draws)
            for token, bias in draw.sampling.logit_bias.items()
        ]
        self._bias = None
        if entries:
            rows, tokens, biases = zip(*entries, strict=True)
            self._bias = (
                torch.tensor(rows, device=self._device),
                torch.tensor(tokens, device=self._device),
                torch.tensor(biases, dtype=torch.float32, device=self._device),
            )

    def _set_mask(self) -> None:
        self._mask = None
        if any(draw.matcher is not None for draw in self._draws):
            words = -(-self._vocabulary // 32)
            self._mask = torch.full((len(self._draws), words), -1, dtype=torch.int32)
            self._bits = torch.arange(32, dtype=torch.int32, device=self._device)

    def _column(self, numbers: list[float]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float32, device=self._device).unsqueeze(1)

    def _allowed(self, mask: torch.Tensor) -> torch.Tensor:
        """Which tokens the grammars let through: bool (n, vocabulary)."""
        stride = mask.shape[1] * mask.itemsize
        for row, draw in enumerate(self._draws):
            if draw.matcher is not None:
                draw.matcher.write_mask(mask.data_ptr() + row * stride, stride)
        words = mask.to(self._device).unsqueeze(-1)
        allowed = (words >> self._bits).bitwise_and_(1).to(torch.bool)
        return allowed.view(len(self._draws), -1)[:, : self._vocabulary]

    def _sample(self, scores: torch.Tensor, likeliest: torch.Tensor) -> torch.Tensor:
        """Token ids (n,) drawn from `scores` (n, vocabulary), which are used up.

        `likeliest` are the ids of the largest scores.
        """
        steps = torch.tensor([draw.step for draw in self._draws])
        drawn = uniform(self._seeds, steps).to(self._device).unsqueeze(1)
        scores.div_(self._temperature)
        weights = scores.sub_(scores.gather(1, likeliest.unsqueeze(1))).exp_()
        if self._cut is not None:
            self._cut.apply_(weights)
        if self._min_p is not None:
            weights.masked_fill_(weights < self._min_p, 0.0)
        sums = weights.cumsum(dim=-1)
        tokens = torch.searchsorted(sums, drawn * sums[:, -1:], right=True)
        tokens = tokens.clamp_(max=self._vocabulary - 1)
        # Sums that were added up in parallel may fall by a rounding where nothing is added.
        possible = weights.gather(1, tokens) > 0
        return torch.where(possible, tokens, likeliest.unsqueeze(1)).squeeze(1)


class _Truncation:
    """top_k and top_p of some rows, in this order."""

    def __init__(self, rows: list[int], draws: Sequence[Draw], device: torch.device) -> None:
        sampling = [draws[row].sampling for row in rows]
        self._all = len(rows) == len(draws)
        self._rows = torch.tensor(rows, device=device)
        self._nucleus = any(each.top_p < 1 for each in sampling)
        self._width = max(_CANDIDATES if self._nucleus else 1, *(each.top_k for each in sampling))

        def column(numbers: list[float]) -> torch.Tensor:
            return torch.tensor(numbers, dtype=torch.float32, device=device).unsqueeze(1)

        self._top_k = column([float(each.top_k or 1 << 30) for each in sampling])
        self._top_p = column([each.top_p if each.top_p < 1 else 2.0 for each in sampling])
        self._limited = self._top_k < 1 << 30

    def apply_(self, weights: torch.Tensor) -> None:
        """Set the `weights` (n, vocabulary) of tokens that are left out to 0."""
        rows = weights if self._all else weights[self._rows]
        rows.masked_fill_(rows < self._least(rows), 0.0)
        if not self._all:
            weights.index_copy_(0, self._rows, rows)

    def _least(self, weights: torch.Tensor) -> torch.Tensor:
        """The least weight that is kept in each row, (rows, 1)."""
        vocabulary = weights.shape[1]
        total = weights.sum(dim=-1, keepdim=True)
        width = min(vocabulary, self._width)
        least, enough = self._cut(weights.topk(width, dim=-1).values, total)
        while self._nucleus and width < vocabulary and not bool(enough.all()):
            width = min(vocabulary, width * _WIDENING)
            least, enough = self._cut(weights.topk(width, dim=-1).values, total)
        return least

    def _cut(self, values: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The least weight kept, and whether these candidates are enough to tell; (rows, 1) both.

        Args:
            values: largest weights in falling order, (rows, width).
            total: sum of all weights of the row, (rows, 1).
        """
        width = values.shape[1]
        kept = torch.arange(width, device=values.device) < self._top_k
        values = values * kept
        inside = values.cumsum(dim=-1)
        total = torch.where(self._limited, inside[:, -1:], total)
        kept &= (inside - values) < self._top_p * total
        last = kept.sum(dim=-1, keepdim=True).clamp_(min=1) - 1
        enough = self._limited | (last < width - 1)
        return values.gather(1, last), enough


def uniform(seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 1), float32: a hash of each of `seeds` and `steps`, int64."""
    bits = _mix64(seeds ^ _mix64(steps + 1))
    return (_shift(bits, 11).double() * 2.0**-53).clamp_(max=_LARGEST_UNIFORM).float()


def _mix64(value: torch.Tensor) -> torch.Tensor:
    """The splitmix64 finaliser: every bit of the result depends on every bit of `value`."""
    value = value + (0x9E3779B97F4A7C15 - (1 << 64))
    value = (value ^ _shift(value, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    value = (value ^ _shift(value, 27)) * (0x94D049BB133111EB - (1 << 64))
    return value ^ _shift(value, 31)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift 64 bits right, zeros in."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
