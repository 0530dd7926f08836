"""Faults on demand: an API server or a store that hangs, or an API server that is gone.

A paused component keeps its connections and answers nobody, like one whose machine hangs; a
stopped one refuses connections. `up` mends both, `down` ends them as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass

from . import control_plane, ownership, processes
from .processes import Component

# What a person calls them.
COMPONENTS = {"apiserver": control_plane.api_server, "etcd": control_plane.etcd}
# What loses nothing by its end: all that the API server knows is in etcd.
STOPPABLE = ("apiserver",)


@dataclass(frozen=True)
class Fault:
    """A command that makes or mends a fault.

    Attributes:
        name: the command.
        words: what it does, in a clause.
        act: does it to a component of `components`.
        components: what it can be done to.
    """

    name: str
    words: str
    act: Callable[[str], None]
    components: tuple[str, ...]


def component(name: str) -> Component:
    """The component that a person calls `apiserver` or `etcd`.

    Raises:
        ClusterError: this checkout's cluster is not up.
    """
    ownership.check_up()
    return COMPONENTS[name]()


def pause(name: str) -> None:
    """Let a component hang until `resume`.

    Raises:
        ClusterError: it does not run.
    """
    processes.pause(component(name).name)


def resume(name: str) -> None:
    """Let a paused component go on, and wait until it serves.

    Raises:
        ClusterError: it does not run, or does not serve in time.
    """
    chosen = component(name)
    processes.resume(chosen.name)
    processes.wait_healthy(chosen)


def stop(name: str) -> None:
    """End a component until `start`, also one that is paused.

    Raises:
        ClusterError: this checkout's cluster is not up.
    """
    processes.stop(component(name).name)


def start(name: str) -> None:
    """Start a component again, and wait until it serves.

    Raises:
        ClusterError: it does not serve in time.
    """
    chosen = component(name)
    processes.start(chosen)
    processes.wait_healthy(chosen)


FAULTS = (
    Fault("pause", "let a component hang: it answers nobody", pause, tuple(COMPONENTS)),
    Fault(
        "resume", "let a paused component go on; wait until it serves", resume, tuple(COMPONENTS)
    ),
    Fault("stop", "end a component; `start` or `up` brings it back", stop, STOPPABLE),
    Fault("start", "start a stopped component; wait until it serves", start, STOPPABLE),
)
