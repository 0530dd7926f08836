"""The Debian packages that the cluster's programs call, installed when missing."""

import os
import shutil
from collections.abc import Mapping

from .commands import ClusterError, run
from .progress import step

# program → the Debian package that has it
PROGRAMS = {
    "runc": "runc",
    "ip": "iproute2",
    "nft": "nftables",
    "openssl": "openssl",
}
# What kube-router calls, which enforces network policies on demand.
NETWORK_POLICIES = {"iptables": "iptables", "ipset": "ipset"}


def missing(programs: Mapping[str, str] = PROGRAMS) -> list[str]:
    """The packages whose programs are not on PATH."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [package for name, package in programs.items() if shutil.which(name, path=path) is None]


def install(programs: Mapping[str, str] = PROGRAMS) -> None:
    """Install the missing ones with apt.

    Args:
        programs: program → the Debian package that has it.

    Raises:
        ClusterError: there is no apt, or it refuses; names the packages.
    """
    needed = missing(programs)
    if not needed:
        return
    names = " ".join(needed)
    if shutil.which("apt-get") is None:
        raise ClusterError(f"install what Debian calls {names}: there is no apt-get to do it")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *needed]
    with step(f"Installing Debian packages: {names}"):
        try:
            run(command, env=quiet, timeout=600)
        except ClusterError:  # the package lists may be old or empty
            run(["apt-get", "update"], env=quiet, timeout=300)
            run(command, env=quiet, timeout=600)
