"""What follows from how long things took: how much a step may read, and when to come again.

Knows how long steps and requests took. A chunk of a prompt may cost as much as two decode steps, so
that a running sequence's next token comes after at most three times its usual while. Who finds no
room comes again when enough of the others should have ended.
"""

import math

_DECODES = 2.0
LEAST = 64
_SMOOTHING = 1 / 4
_RATE_SMOOTHING = 1 / 8
_LONGEST_RETRY = 300


class Pace:
    """The bound of a step's prompt tokens, from what earlier steps cost.

    Args:
        chunk: the most tokens of a step, whatever it costs.
        least: no bound is below this: fewer tokens would not cost less.
    """

    def __init__(self, chunk: int, least: int = LEAST) -> None:
        self._chunk, self._least = chunk, least
        self._decode_seconds: float | None = None
        self._token_seconds: float | None = None

    def budget(self, *, decoding: bool) -> int:
        """Prompt tokens of the next step; `decoding` if sequences wait for it.

        A whole chunk or half of it, or half of that, and so on: of few shapes.
        """
        budget = self._chunk
        if not decoding or self._decode_seconds is None or self._token_seconds is None:
            return budget
        allowed = _DECODES * self._decode_seconds / max(self._token_seconds, 1e-9)
        while budget > allowed and budget // 2 >= self._least:
            budget //= 2
        return budget

    def note(self, seconds: float, *, prompt_tokens: int, decoded: bool) -> None:
        """A step took so long, until its tokens were known."""
        if not prompt_tokens:
            self._decode_seconds = _smooth(self._decode_seconds, seconds)
            return
        if decoded:
            if self._decode_seconds is None:
                return
            seconds = max(0.0, seconds - self._decode_seconds)
        self._token_seconds = _smooth(self._token_seconds, seconds / prompt_tokens)


class Rate:
    """How fast sequences or texts finish lately, all places of the batch together.

    Args:
        places: of the batch. Until anything finished, each is taken to be free again in a second.
    """

    def __init__(self, places: int) -> None:
        self._unmeasured = 1.0 / places
        self._seconds: float | None = None

    def note(self, seconds: float) -> None:
        """One more finished, of those that take so many seconds each."""
        self._seconds = _smooth(self._seconds, seconds, _RATE_SMOOTHING)

    def retry_after(self, number: int) -> int:
        """Whole seconds until so many have finished, at least 1 and at most 300."""
        each = self._unmeasured if self._seconds is None else self._seconds
        return max(1, min(_LONGEST_RETRY, math.ceil(number * each)))


def _smooth(before: float | None, now: float, share: float = _SMOOTHING) -> float:
    return now if before is None else before + (now - before) * share
