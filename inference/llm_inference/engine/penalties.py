"""Penalties for tokens that a sequence already has.

Knows logits and which tokens came before. How often each token was generated is counted on the
device, in one matrix for the rows of a batch, and moves to another one when the batch changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llm_inference.engine.step import Draw


@dataclass(slots=True)
class _Place:
    """Where a draw's counts are, and how many of its tokens are counted in them."""

    home: "Penalties"
    row: int
    counted: int


class Penalties:
    """Presence, frequency and repetition penalties of some rows of a batch.

    `counts` (rows, vocabulary) says how often each token was generated, `prompts` (rows,
    vocabulary) which are in the prompt.

    Args:
        rows: which rows of the batch's scores.
        draws: theirs.
        device: of the scores.
        vocabulary: their width.
    """

    def __init__(
        self, rows: list[int], draws: list[Draw], device: torch.device, vocabulary: int
    ) -> None:
        self._draws = draws
        self._rows = torch.tensor(rows, device=device)
        self._device = device
        self._vocabulary = vocabulary
        self.counts = self.prompts = torch.empty(0, device=device)
        sampling = [draw.sampling for draw in draws]
        self._presence = self._column([each.presence_penalty for each in sampling], neutral=0.0)
        self._frequency = self._column([each.frequency_penalty for each in sampling], neutral=0.0)
        self._repetition = self._column([each.repetition_penalty for each in sampling], neutral=1.0)

    def apply_(self, scores: torch.Tensor) -> None:
        """Penalise `scores` (batch rows, vocabulary) in place."""
        if not all(isinstance(d.memory, _Place) and d.memory.home is self for d in self._draws):
            self._gather()
        self._count()
        mine = scores if len(self._draws) == scores.shape[0] else scores[self._rows]
        if self._repetition is not None:
            penalized = torch.where(mine > 0, mine / self._repetition, mine * self._repetition)
            mine.copy_(torch.where(self.prompts | (self.counts > 0), penalized, mine))
        if self._frequency is not None:
            mine.addcmul_(self.counts, self._frequency, value=-1)
        if self._presence is not None:
            mine.addcmul_(self.counts.clamp(max=1), self._presence, value=-1)
        if mine is not scores:
            scores.index_copy_(0, self._rows, mine)

    def _column(self, numbers: Sequence[float], *, neutral: float) -> torch.Tensor | None:
        """As (rows, 1); None where all are neutral."""
        if all(number == neutral for number in numbers):
            return None
        return torch.tensor(numbers, dtype=torch.float32, device=self._device).unsqueeze(1)

    def _gather(self) -> None:
        """Bring the counts of all draws here, from wherever they were."""
        shape = (len(self._draws), self._vocabulary)
        counts = torch.zeros(shape, dtype=torch.float32, device=self._device)
        prompts = torch.zeros(shape, dtype=torch.bool, device=self._device)
        for row, draw in enumerate(self._draws):
            place = draw.memory
            if isinstance(place, _Place):
                counts[row] = place.home.counts[place.row]
                prompts[row] = place.home.prompts[place.row]
                draw.memory = _Place(self, row, place.counted)
            else:
                if draw.sampling.repetition_penalty != 1.0 and draw.prompt:
                    prompts[row, torch.tensor(list(set(draw.prompt)), device=self._device)] = True
                draw.memory = _Place(self, row, 0)
        self.counts, self.prompts = counts, prompts

    def _count(self) -> None:
        """Count the tokens generated since the last time."""
        rows: list[int] = []
        tokens: list[int] = []
        for row, draw in enumerate(self._draws):
            place = draw.memory
            if isinstance(place, _Place) and place.counted < len(draw.tokens):
                fresh = draw.tokens[place.counted :]
                place.counted = len(draw.tokens)
                rows += [row] * len(fresh)
                tokens += fresh
        if tokens:
            index = torch.tensor([rows, tokens], device=self._device)
            one = torch.ones((), device=self._device)
            self.counts.index_put_((index[0], index[1]), one, accumulate=True)
