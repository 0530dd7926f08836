"""What this machine must allow, tried out rather than guessed, and said in a sentence each.

Every check undoes what it does: links and tables are made in a network namespace of their own.
"""

import ipaddress
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from . import cgroups, network, paths
from .commands import ClusterError, run

# Returns what is wrong in a sentence; None when all is well.
Check = Callable[[], str | None]

MIN_FREE_GIB = 10
PORTS = (10247, 10248, 10249, 10256, 10257, 10259, 12379, 12380)
# The kubelet's sockets lie up to this many characters below the checkout; 107 is a socket's limit.
SOCKET_BELOW = len("/.dev/cluster/kubelet/pod-resources/kubelet.sock")

# What kube-proxy's rules are made of, in small.
NFTABLES_PROBE = """\
table ip probe {
  map endpoints { type ipv4_addr . inet_proto . inet_service : verdict; }
  chain a { meta l4proto tcp dnat to 10.0.0.1:80; }
  chain b { meta l4proto tcp dnat to 10.0.0.2:80; }
  chain services {
    type nat hook prerouting priority dstnat;
    numgen random mod 2 vmap { 0 : goto a, 1 : goto b }
    fib daddr type local ip daddr . meta l4proto . th dport vmap @endpoints
  }
  chain masquerading { type nat hook postrouting priority srcnat; masquerade; }
}
"""


def cgroup_controllers() -> str | None:
    """The kubelet bounds pods by cgroups."""
    mounted = cgroups.hierarchies()
    if not mounted:
        return "no cgroups are mounted below /sys/fs/cgroup"
    if cgroups.is_unified():
        offered = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    else:
        offered = [name for mount in mounted for name in mount.name.split(",")]
    lacking = {"cpu", "memory", "pids", "cpuset"} - set(offered)
    if lacking:
        return f"these cgroup controllers are missing: {', '.join(sorted(lacking))}"
    for mount in mounted:
        probe = mount / f"{paths.NAME}-probe"
        try:
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            return f"no cgroup can be made in {mount}: {error.strerror}"
    return None


def overlayfs() -> str | None:
    """Images are layers, and overlayfs stacks them."""
    paths.STATE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.STATE, prefix="probe-") as folder:
        for name in ("lower", "upper", "work", "merged"):
            Path(folder, name).mkdir()
        options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
        merged = f"{folder}/merged"
        try:
            run(["mount", "-t", "overlay", "overlay", "-o", options, merged])
            run(["umount", merged])
        except ClusterError as error:
            return f"overlayfs cannot be mounted in {paths.STATE}: {error}"
    return None


def links() -> str | None:
    """Pods hang on veth pairs; the node's address on a bridge."""
    script = "ip link add name probe0 type bridge; ip link add name probe1 type veth"
    return _in_namespace(["sh", "-ec", script], "veth pairs and bridges cannot be made")


def nftables() -> str | None:
    """Services are nftables rules."""
    return _in_namespace(["nft", "-f", "-"], "nftables lacks what kube-proxy needs", NFTABLES_PROBE)


def forwarding() -> str | None:
    """The host forwards between pods."""
    try:
        network.FORWARDING.write_text(network.FORWARDING.read_text())
    except OSError as error:
        return f"{network.FORWARDING} cannot be written: {error.strerror}"
    return None


def firewall() -> str | None:
    """A firewall, such as Docker's, must not drop what the host forwards between pods."""
    for entry in json.loads(run(["nft", "--json", "list", "chains"]))["nftables"]:
        chain = entry.get("chain", {})
        if (chain.get("hook"), chain.get("policy")) != ("forward", "drop"):
            continue
        table = (chain["family"], chain["table"])
        if network.POD_RANGE not in run(["nft", "list", "table", *table]):
            return (
                f"the chain {chain['name']} of the nftables table {' '.join(table)} drops what it "
                f"does not know: let it accept {network.POD_RANGE} as source and as destination"
            )
    return None


def addresses() -> str | None:
    """The cluster's address ranges must be free on this machine."""
    routes = json.loads(run(["ip", "-json", "route"]))
    taken = {r["dst"]: r["dev"] for r in routes if r["dst"] != "default" and "dev" in r}
    ours = [
        network.POD_RANGE,
        network.FAKE_POD_RANGE,
        network.SERVICE_RANGE,
        f"{network.NODE_ADDRESS}/32",
    ]
    for route, device in taken.items():
        for own in ours:
            if ipaddress.ip_network(route).overlaps(ipaddress.ip_network(own)):
                return f"the cluster's {own} is in use here: {device} has a route to {route}"
    return None


def ports() -> str | None:
    """The components' ports on loopback must be free."""
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return f"port {port} of 127.0.0.1 is in use by another program"
    return None


def disk() -> str | None:
    """Images and the build cache need room."""
    free = os.statvfs(paths.CHECKOUT)
    gib = free.f_bavail * free.f_frsize / 2**30
    if gib >= MIN_FREE_GIB:
        return None
    return f"{paths.CHECKOUT} has {gib:.0f} GiB free, images need {MIN_FREE_GIB}"


def path_length() -> str | None:
    """A UNIX socket's path is short."""
    longest = 107 - SOCKET_BELOW
    if len(str(paths.CHECKOUT)) <= longest:
        return None
    return f"the checkout's path is longer than {longest} characters: sockets below it would fail"


MACHINE: tuple[Check, ...] = (
    cgroup_controllers,
    overlayfs,
    links,
    nftables,
    forwarding,
    firewall,
    disk,
    path_length,
)
# Only on a machine without a cluster: a running one uses these itself.
UNUSED: tuple[Check, ...] = (addresses, ports)


def check_root() -> None:
    """Nothing can be installed or tried without it.

    Raises:
        ClusterError: says so.
    """
    if os.geteuid() != 0:
        raise ClusterError("the cluster starts containers and mounts, as root only: use sudo")


def check(checks: Sequence[Check]) -> None:
    """Try out all of them, `MACHINE` or `UNUSED`.

    Raises:
        ClusterError: says all that is missing, one line each.
    """
    problems = [problem for try_out in checks if (problem := try_out()) is not None]
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise ClusterError(f"this machine cannot run the cluster:{listed}")


def _in_namespace(argv: list[str], problem: str, text: str = "") -> str | None:
    done = subprocess.run(
        ["unshare", "--net", *argv], input=text, capture_output=True, text=True, check=False
    )
    return None if done.returncode == 0 else f"{problem}: {done.stderr.strip()}"
