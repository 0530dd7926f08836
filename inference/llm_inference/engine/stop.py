"""Stop strings over a stream of text, and the log probabilities that wait with it.

Knows strings and positions in them, not tokens' meaning.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_inference.engine.interface import TokenLogprob


class StopMatcher:
    """Lets text through up to the first stop string, wherever pieces of it are cut.

    Text that may turn out to be the start of a stop string is held back until it is decided, so
    nothing of a stop string is ever let through.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """Add `text`; the part of all text so far that is now safe to send."""
        if self.matched:
            return ""
        held = self._held + text
        found = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self.matched, self._held = True, ""
            return held[: min(found)]
        keep = self._undecided(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """The text still held back, when no more will come."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string starts with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0


class HeldLogprobs:
    """Lets what is known of tokens go with the text they belong to.

    A token goes once all of its text has; one without text of its own, a part of a character say,
    goes with the text that follows.
    """

    def __init__(self) -> None:
        self._held: deque[_Held] = deque()
        self._end = 0
        self._sent = 0

    def push(self, logprob: TokenLogprob, text: str) -> None:
        """Add a token that completes `text`, possibly none."""
        self._held.append(_Held(logprob, self._end))
        if text:
            self._end += len(text)
            for held in reversed(self._held):
                if held.end is not None:
                    break
                held.end = self._end

    def release(self, text: str) -> tuple[TokenLogprob, ...]:
        """`text` goes; the tokens that go with it."""
        self._sent += len(text)
        return self._take(lambda held: held.end is not None and held.end <= self._sent)

    def cut(self, text: str) -> tuple[TokenLogprob, ...]:
        """`text` goes and what follows never will; the tokens that began before its end."""
        self._sent += len(text)
        return self._take(lambda held: held.start < self._sent)

    def flush(self) -> tuple[TokenLogprob, ...]:
        """All tokens still held, when no more will come."""
        return self._take(lambda _: True)

    def _take(self, goes: Callable[["_Held"], bool]) -> tuple[TokenLogprob, ...]:
        taken = []
        while self._held and goes(self._held[0]):
            taken.append(self._held.popleft().logprob)
        return tuple(taken)


@dataclass(slots=True)
class _Held:
    """A token's text is characters `start` to `end` of all; the end is None until there is some."""

    logprob: TokenLogprob
    start: int
    end: int | None = None
