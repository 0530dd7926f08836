"""Reaps processes that others left behind: a container's first process inherits them.

`kubectl exec` and exec probes start processes beside the server; what those leave running becomes
a child of process 1, and would stay in the process table after its end. The server starts no
process itself, so whatever child ends is such a one. Knows nothing else.
"""

import os
import signal

_FIRST = 1


def adopt() -> None:
    """Reap every child that ends from now on, if this is a container's first process."""
    if os.getpid() == _FIRST:
        signal.signal(signal.SIGCHLD, lambda *_: reap())


def reap() -> int:
    """Reap the children that have ended; return how many."""
    count = 0
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            count += 1
    except ChildProcessError:
        pass  # there is none left
    return count
