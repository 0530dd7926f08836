"""Stop strings over a stream of text. Knows strings only."""

from collections.abc import Sequence


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
