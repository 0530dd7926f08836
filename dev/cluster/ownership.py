"""One cluster a machine: which checkout owns it, and what another one may do.

The owner's file lies in the runtime folder that all checkouts share. Decides; cleans up nothing.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from . import paths
from .commands import ClusterError

OWNER_FILE = paths.RUN / "owner.json"


class Decision(Enum):
    """What `up` is to do, given who was here before."""

    FRESH = "nobody was here"
    CONTINUE = "this checkout's cluster runs"
    CLEAN = "a dead cluster left things behind"
    TAKE_OVER = "another checkout's cluster runs and is to end"
    REFUSE = "another checkout's cluster runs"


def decide(owner: Path | None, checkout: Path, *, alive: bool, take_over: bool) -> Decision:
    """Decide what `up` from `checkout` does.

    Args:
        owner: the checkout that the owner's file names; None without a readable one.
        checkout: the one that asks.
        alive: whether any component of that cluster runs.
        take_over: whether the person asked to end another checkout's cluster.
    """
    if not alive:
        return Decision.FRESH if owner is None else Decision.CLEAN
    if owner == checkout:
        return Decision.CONTINUE
    # Processes without an owner's file: nobody can say whose they are, so nobody can be asked.
    if owner is None or take_over:
        return Decision.TAKE_OVER
    return Decision.REFUSE


def owner() -> Path | None:
    """The checkout that the owner's file names; None without a readable one."""
    try:
        return Path(json.loads(OWNER_FILE.read_text())["checkout"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def check_up() -> None:
    """Some commands need a cluster that is up.

    Raises:
        ClusterError: this checkout has none.
    """
    if owner() != paths.CHECKOUT:
        raise ClusterError("no cluster of this checkout is up: run `python3 -m dev.cluster up`")


def claim() -> None:
    """Make this checkout the owner."""
    paths.RUN.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = OWNER_FILE.with_suffix(".new")
    fresh.write_text(json.dumps({"checkout": str(paths.CHECKOUT)}))
    fresh.replace(OWNER_FILE)


@contextmanager
def only_command() -> Iterator[None]:
    """Let one command at a time change the cluster, whichever checkout it comes from.

    Raises:
        ClusterError: another one is at it.
    """
    # The name of an abstract socket is a lock that leaves no file and goes with its process.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(f"\0{paths.NAME}")
        except OSError:
            raise ClusterError(
                "another `up` or `down` is at work: try again when it is done"
            ) from None
        yield
