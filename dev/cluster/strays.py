"""Files that the cluster's programs put in fixed places of the machine, whatever they are told.

Removes those that are the cluster's own, and the folders that are empty then: another kubelet's or
containerd's files on the same machine stay.
"""

import shutil
import socket
from pathlib import Path

from . import network

CONTAINER_LOGS = Path("/var/log/containers")
CNI_RESULTS = Path("/var/lib/cni/results")
DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
FIFOS = Path("/run/containerd/fifo")
OTHER_CONTAINERD = Path("/run/containerd/containerd.sock")

# Deepest first, so that each is empty when its turn comes.
FOLDERS = (
    CONTAINER_LOGS,
    CNI_RESULTS,
    CNI_RESULTS.parent,
    DEVICE_PLUGINS,
    DEVICE_PLUGINS.parent,
    FIFOS,
    Path("/run/containerd/runc/k8s.io"),  # where `ctr run` keeps its containers
    Path("/run/containerd/runc"),
    Path("/run/containerd"),
)


def find(checkout: Path) -> list[Path]:
    """The stray files of a checkout's cluster, once its processes have ended."""
    logs = str(checkout / ".dev")
    links = [link for link in _files(CONTAINER_LOGS) if link.is_symlink()]
    kubelet = DEVICE_PLUGINS / "kubelet.sock"
    return [
        *(link for link in links if str(link.readlink()).startswith(logs)),
        *CNI_RESULTS.glob(f"{network.NAME}-*"),
        *([kubelet] if kubelet.is_socket() and not _answers(kubelet) else []),
        # BuildKit leaves pipes here when it is killed; they could be another containerd's too.
        *([] if OTHER_CONTAINERD.exists() else _files(FIFOS)),
    ]


def remove(checkout: Path) -> None:
    """Remove them, and the folders they leave empty."""
    for file in find(checkout):
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
    for folder in FOLDERS:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _answers(file: Path) -> bool:
    """Whether a process listens on a socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(file))
        except OSError:
            return False
    return True
