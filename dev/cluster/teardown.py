"""End a cluster and remove all it left on the machine, whatever state it is in.

Works from what the machine shows (cgroups, mounts, links, tables), not from what a pid file
promises, so it also cleans up after a machine reset or another checkout.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from . import cgroups, network, network_policies, paths, processes, runtime, strays
from .commands import ClusterError, run
from .progress import step

# Whoever restarts or writes ends before what it writes to.
ORDER = (
    network_policies.NAME,
    "kwok",
    "kubelet",
    "kube-proxy",
    "kube-scheduler",
    "kube-controller-manager",
    "kube-apiserver",
    "etcd",
)


def end_cluster(checkout: Path) -> None:
    """Leave no process, mount, link, table, cgroup or socket of a checkout's cluster.

    Keeps the checkout's images and build cache.
    """
    if processes.all_running():
        with step("Stopping the control plane and the node"):
            for name in ORDER:
                # Nothing they hold outlives `down`, so there is little to wait for.
                processes.stop(name, grace=2)
    if processes.running("containerd"):
        with step("Removing containers"):
            _remove_containers()
    with step("Stopping containerd and BuildKit"):
        for name in ("buildkitd", "containerd", *processes.all_running()):
            processes.stop(name)
        cgroups.kill()
    with step("Removing mounts, links, tables and cgroups"):
        for mount in mounts(checkout):
            run(["umount", "--lazy", mount])
        if left := mounts(checkout):  # below them may lie what is not the cluster's to remove
            raise ClusterError(f"these do not unmount: {', '.join(left)}")
        network_policies.remove_rules()
        network.down()
        cgroups.remove()
        strays.remove(checkout)
        shutil.rmtree(paths.RUN, ignore_errors=True)
        shutil.rmtree(checkout / ".dev" / "cluster", ignore_errors=True)
        (checkout / ".dev" / "kubeconfig").unlink(missing_ok=True)


def _remove_containers() -> None:
    try:
        runtime.remove_containers()
    except ClusterError:
        # A containerd that does not answer is ended all the same; `up` removes them next time.
        return


def mounts(checkout: Path) -> list[str]:
    """The mount points below the cluster's folders, the innermost first."""
    return mounts_below((paths.RUN, checkout / ".dev"), Path("/proc/self/mountinfo").read_text())


def mounts_below(roots: Sequence[Path], mountinfo: str) -> list[str]:
    """The mount points below some folders, the innermost first, from /proc/self/mountinfo."""
    prefixes = tuple(f"{root}/" for root in roots)
    points = [line.split()[4] for line in mountinfo.splitlines()]
    # The kernel writes a space in a path as \040.
    plain = [point.replace("\\040", " ") for point in points]
    return [point for point in reversed(plain) if point.startswith(prefixes)]


def leftovers(checkout: Path) -> list[str]:
    """What is there of a cluster, in words; empty after `down`."""
    found = [f"process {name} ({pid})" for name, pid in processes.all_running().items()]
    found += [f"process {pid} in a cgroup of the cluster" for pid in sorted(cgroups.members())]
    found += [f"mount {point}" for point in mounts(checkout)]
    found += network.leftovers() + network_policies.leftovers()
    found += [f"cgroup {group}" for group in cgroups.leftovers()]
    found += [f"file {file}" for file in strays.find(checkout)]
    found += [f"folder {paths.RUN}"] if paths.RUN.exists() else []
    return found


def purge(checkout: Path) -> None:
    """Remove the checkout's whole state, images and build cache included."""
    shutil.rmtree(checkout / ".dev", ignore_errors=True)
