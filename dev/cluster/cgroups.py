"""The cluster's own part of each cgroup hierarchy.

Pods, build containers and the cluster's own processes all live below `/llm-operator-dev`, so that
whatever is in there belongs to the cluster, however it was orphaned. Knows cgroup v1, v2 and hosts
that mount both.
"""

import os
import signal
import time
from pathlib import Path

from . import paths
from .commands import ClusterError

PODS = f"/{paths.NAME}"
BUILDS = f"/{paths.NAME}/builds"


def hierarchies() -> list[Path]:
    """The mount points of all cgroup hierarchies: one on a v2 host, one a controller on v1."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ")
        if after.startswith(("cgroup ", "cgroup2 ")):
            mounts.append(Path(before.split()[4]))
    return mounts


def is_unified() -> bool:
    """Whether the host runs on cgroup v2 alone."""
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


def tracking() -> Path:
    """The hierarchy whose membership says that a process is the cluster's."""
    return Path("/sys/fs/cgroup" if is_unified() else "/sys/fs/cgroup/pids")


def create() -> None:
    """Make the cluster's groups in every hierarchy.

    Raises:
        ClusterError: a hierarchy cannot be written to.
    """
    for hierarchy in hierarchies():
        group = hierarchy / paths.NAME
        try:
            group.mkdir(exist_ok=True)
            for file in ("cpuset.cpus", "cpuset.mems"):
                # A v1 cpuset starts out empty, and an empty one takes no process.
                if not is_unified() and (group / file).exists():
                    (group / file).write_text((hierarchy / file).read_text())
            if is_unified():
                enabled = " ".join(f"+{name}" for name in _controllers(hierarchy))
                (hierarchy / "cgroup.subtree_control").write_text(enabled)
                (group / "cgroup.subtree_control").write_text(enabled)
        except OSError as error:
            raise ClusterError(f"cannot make the cgroup {group}: {error.strerror}") from None
    (tracking() / paths.NAME / "system").mkdir(exist_ok=True)


def adopt(pid: int) -> None:
    """Count a process, and all it starts, as the cluster's."""
    (tracking() / paths.NAME / "system" / "cgroup.procs").write_text(str(pid))


def members() -> set[int]:
    """The process ids in any of the cluster's groups."""
    found: set[int] = set()
    for hierarchy in hierarchies():
        for file in (hierarchy / paths.NAME).glob("**/cgroup.procs"):
            try:
                found.update(int(pid) for pid in file.read_text().split())
            except OSError:  # the group went away meanwhile
                continue
    return found


def kill(*, timeout: float = 15) -> None:
    """End every process in the cluster's groups.

    Raises:
        ClusterError: some outlive SIGKILL.
    """
    deadline = time.monotonic() + timeout
    while left := members():
        if time.monotonic() > deadline:
            raise ClusterError(f"these processes do not end: {sorted(left)}")
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def remove() -> None:
    """Remove the cluster's groups, which no process is in any more."""
    for group in leftovers():
        # Deepest first: a group that holds another cannot be removed.
        for folder in sorted((f for f in group.glob("**/") if f != group), reverse=True):
            _rmdir(folder)
        _rmdir(group)


def leftovers() -> list[Path]:
    """The cluster's top group in each hierarchy that still has one."""
    return [group for root in hierarchies() if (group := root / paths.NAME).is_dir()]


def _controllers(hierarchy: Path) -> list[str]:
    return (hierarchy / "cgroup.controllers").read_text().split()


def _rmdir(folder: Path, *, tries: int = 40) -> None:
    # The kernel empties a group some milliseconds after its last process has ended.
    for attempt in range(tries):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if attempt == tries - 1:
                raise
            time.sleep(0.05)
        else:
            return
