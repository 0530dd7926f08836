"""What the person at the terminal sees: one line a step, with its time."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def say(sentence: str) -> None:
    """Print one line at once, also into a pipe."""
    print(sentence, flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print `title … 1.2 s`: the title as the step begins, the time as it ends."""
    sys.stdout.write(f"{title} … ")
    sys.stdout.flush()
    began = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"failed after {time.monotonic() - began:.1f} s")
        raise
    say(f"{time.monotonic() - began:.1f} s")
