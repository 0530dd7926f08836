"""How many prompt tokens may go into a step without keeping running sequences waiting too long.

Knows how long steps took. A chunk of a prompt may cost as much as two decode steps, so that a
running sequence's next token comes after at most three times its usual while.
"""

_DECODES = 2.0
LEAST = 64
_SMOOTHING = 1 / 4


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


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else before + (now - before) * _SMOOTHING
