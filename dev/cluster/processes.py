"""Long-running processes: started in sessions of their own, found again by pid files, ended.

A pid file holds more than the pid: the boot and the moment at which the process began, so that a
process which got a recycled pid is never taken for the cluster's. Knows nothing of what it runs.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import cgroups, paths, tools
from .commands import ClusterError

# Field 22 of /proc/PID/stat, counted from the first field after the process's name in brackets.
STATE_FIELD, START_FIELD = 0, 19
PAUSED = "T"


@dataclass(frozen=True)
class Identity:
    """One process of one boot: the pid, the clock tick it began at, the boot's id."""

    pid: int
    began: int
    boot: str


@dataclass(frozen=True)
class Component:
    """One long-running process of the cluster.

    Attributes:
        name: names its pid file and its log.
        argv: the program and its arguments.
        healthy: asks the running process whether it serves.
        files: its configuration, path → content; written when it starts, never under its feet.
    """

    name: str
    argv: Sequence[str]
    healthy: Callable[[], bool]
    files: Mapping[Path, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """The file that holds what it prints."""
        return paths.LOGS / f"{self.name}.log"


def identity(pid: int) -> Identity | None:
    """Who runs under a pid now; None when nobody does, or only a zombie."""
    try:
        fields = _stat(pid)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[STATE_FIELD] in {"Z", "X"}:
        return None
    return Identity(pid=pid, began=int(fields[START_FIELD]), boot=boot)


def _stat(pid: int) -> list[str]:
    # The name may hold spaces and brackets: only its last bracket ends it.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def recorded(name: str) -> Identity | None:
    """Whom the pid file names; None without one, or when it was only half written."""
    try:
        return Identity(**json.loads(_pid_file(name).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def running(name: str) -> int | None:
    """The pid of a component that runs, else None."""
    known = recorded(name)
    return known.pid if known and identity(known.pid) == known else None


def all_running() -> dict[str, int]:
    """Every component that has a pid file and runs, with its pid."""
    names = sorted(file.stem for file in paths.RUN.glob("*.pid"))
    return {name: pid for name in names if (pid := running(name)) is not None}


def paused(name: str) -> bool:
    """Whether a component runs and is held by `pause`."""
    pid = running(name)
    try:
        return pid is not None and _stat(pid)[STATE_FIELD] == PAUSED
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return False


def pause(name: str) -> None:
    """Hold a component as it is: it keeps its connections and answers nobody.

    Raises:
        ClusterError: it does not run.
    """
    _signal(name, signal.SIGSTOP)


def resume(name: str) -> None:
    """Let a paused component go on; does nothing to one that is not paused.

    Raises:
        ClusterError: it does not run.
    """
    _signal(name, signal.SIGCONT)


def _signal(name: str, number: signal.Signals) -> None:
    pid = running(name)
    if pid is None:
        raise ClusterError(f"{name} does not run")
    os.kill(pid, number)


def start(component: Component) -> None:
    """Start a component, unless it runs; a paused one goes on.

    Returns before it serves: see `wait_healthy`.
    """
    if running(component.name):
        resume(component.name)
        return
    for file, content in component.files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    paths.LOGS.mkdir(parents=True, exist_ok=True)
    if component.log.exists():
        component.log.replace(component.log.with_suffix(".log.1"))
    with component.log.open("ab") as log:
        process = subprocess.Popen(
            component.argv,
            env=tools.environment(),
            cwd=paths.CLUSTER,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    cgroups.adopt(process.pid)
    if (known := identity(process.pid)) is not None:
        fresh = _pid_file(component.name).with_suffix(".new")
        fresh.write_text(json.dumps(asdict(known)))
        fresh.replace(_pid_file(component.name))
    # The process outlives this one: without a code, Popen would warn that it still runs.
    process.returncode = 0


def wait_healthy(component: Component, *, timeout: float = 60) -> None:
    """Wait until a started component serves.

    Raises:
        ClusterError: it ended, or does not serve in time; holds its last lines.
    """
    deadline = time.monotonic() + timeout
    while not component.healthy():
        if running(component.name) is None:
            raise ClusterError(f"{component.name} ended.{_last_words(component)}")
        if time.monotonic() > deadline:
            reason = f"{component.name} does not serve after {timeout:.0f} s."
            raise ClusterError(f"{reason}{_last_words(component)}")
        time.sleep(0.1)


def stop(name: str, *, grace: float = 10) -> None:
    """End a component: SIGTERM, and SIGKILL after `grace` seconds."""
    pid = running(name)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)  # a paused process takes no other signal but SIGKILL
        deadline = time.monotonic() + grace
        while running(name) and time.monotonic() < deadline:
            _reap(pid)
            time.sleep(0.02)
        if running(name):
            os.kill(pid, signal.SIGKILL)
            while running(name):
                _reap(pid)
                time.sleep(0.02)
    _pid_file(name).unlink(missing_ok=True)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # started by an earlier command: init reaps it
        return


def _pid_file(name: str) -> Path:
    return paths.RUN / f"{name}.pid"


def _last_words(component: Component, *, lines: int = 8) -> str:
    try:
        tail = component.log.read_text(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return ""
    return "\n".join([f" Last lines of {component.log}:", *(f"  {line[:400]}" for line in tail)])
