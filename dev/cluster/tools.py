"""The cluster's programs: which they are, how they are built, where they lie.

They are built from the pinned Go modules in `dev/tools/`, once for all checkouts, into a cache
folder named by what they are built from. Knows nothing of how they are run.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import paths
from .commands import ClusterError, run
from .progress import say, step

LINKER_FLAGS = "-s -w"
# The Kubernetes programs ask these variables for their version; unset, they say v0.0.0.
VERSION_VARIABLES = (
    "k8s.io/component-base/version.gitVersion",
    "k8s.io/client-go/pkg/version.gitVersion",
)


@dataclass(frozen=True)
class Program:
    """One program: its file name, its Go package, and the module in `dev/tools/` that pins it."""

    name: str
    package: str
    module: str


# The folders of the kwok module that hold the stages: nodes are Ready and pods run at once.
KWOK_STAGES = ("node/fast", "node/heartbeat-with-lease", "pod/fast")

CNI = "github.com/containernetworking/plugins/plugins"

# In the order in which they become useful: images can be built long before a cluster starts.
PROGRAMS = (
    Program("buildkitd", "github.com/moby/buildkit/cmd/buildkitd", "containers"),
    Program("buildctl", "github.com/moby/buildkit/cmd/buildctl", "containers"),
    Program("containerd", "github.com/containerd/containerd/v2/cmd/containerd", "containers"),
    Program(
        "containerd-shim-runc-v2",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        "containers",
    ),
    Program("ctr", "github.com/containerd/containerd/v2/cmd/ctr", "containers"),
    Program("pause", "./pause", "containers"),
    Program("probe", "./probe", "containers"),
    Program("helm", "helm.sh/helm/v4/cmd/helm", "kubernetes"),
    Program("kubectl", "k8s.io/kubernetes/cmd/kubectl", "kubernetes"),
    Program("ptp", f"{CNI}/main/ptp", "containers"),
    Program("host-local", f"{CNI}/ipam/host-local", "containers"),
    Program("portmap", f"{CNI}/meta/portmap", "containers"),
    Program("etcd", "go.etcd.io/etcd/server/v3", "kubernetes"),
    Program("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", "kubernetes"),
    Program(
        "kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", "kubernetes"
    ),
    Program("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", "kubernetes"),
    Program("kubelet", "k8s.io/kubernetes/cmd/kubelet", "kubernetes"),
    Program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", "kubernetes"),
    Program("coredns", "github.com/coredns/coredns", "kubernetes"),
    Program("metrics-server", "sigs.k8s.io/metrics-server/cmd/metrics-server", "kubernetes"),
    Program("kwok", "sigs.k8s.io/kwok/cmd/kwok", "kubernetes"),
)


@functools.cache
def digest() -> str:
    """Twelve hex digits that change when anything the programs are built from changes."""
    content = hashlib.sha256(repr((PROGRAMS, LINKER_FLAGS, VERSION_VARIABLES)).encode())
    for module in sorted({program.module for program in PROGRAMS}):
        folder = paths.TOOL_MODULES / module
        for file in sorted([folder / "go.mod", folder / "go.sum", *folder.glob("**/*.go")]):
            content.update(file.read_bytes())
    return content.hexdigest()[:12]


def bin_folder() -> Path:
    """The folder that holds the programs, whether or not they are built."""
    return paths.cache() / "tools" / digest() / "bin"


def path(name: str) -> Path:
    """The path of one program."""
    return bin_folder() / name


def kwok_stages() -> Path:
    """The file that tells kwok how its nodes and pods live: kwok's own quick stages."""
    return bin_folder().parent / "kwok-stages.yaml"


def environment() -> dict[str, str]:
    """This process's environment with the programs first on PATH."""
    return {**os.environ, "PATH": f"{bin_folder()}:{os.environ.get('PATH', '')}"}


def kubernetes_version() -> str:
    """The Kubernetes version that `dev/tools/kubernetes/go.mod` pins, such as v1.37.2."""
    pins = (paths.TOOL_MODULES / "kubernetes" / "go.mod").read_text()
    found = re.search(r"^\s*(?:require )?k8s\.io/kubernetes (v\S+)", pins, re.MULTILINE)
    if found is None:
        raise ClusterError("dev/tools/kubernetes/go.mod does not require k8s.io/kubernetes")
    return found[1]


def build(*, modules: Collection[str] = ("containers", "kubernetes")) -> None:
    """Build the programs that are missing, one at a time; an interrupted build goes on here.

    Args:
        modules: whose programs; `containers` alone is enough to build images.

    Raises:
        ClusterError: Go is missing or a program does not build.
    """
    todo = [p for p in PROGRAMS if p.module in modules and not path(p.name).exists()]
    stages_missing = "kubernetes" in modules and not kwok_stages().exists()
    if not todo and not stages_missing:
        return
    if shutil.which("go") is None:
        raise ClusterError("Go is not installed: the cluster's programs are built from source")
    say(f"Building {len(todo)} programs into {bin_folder()}")
    bin_folder().mkdir(parents=True, exist_ok=True)
    for program in todo:
        with step(f"  building {program.name}"), _lock(program):
            if not path(program.name).exists():
                _build(program)
    if stages_missing:
        _write_kwok_stages()


@contextmanager
def _lock(program: Program) -> Iterator[None]:
    """Wait while another checkout builds the same program."""
    with (bin_folder().parent / f"{program.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(program: Program) -> None:
    flags = LINKER_FLAGS
    if program.module == "kubernetes":
        flags += "".join(f" -X {name}={kubernetes_version()}" for name in VERSION_VARIABLES)
    fresh = bin_folder() / f".{program.name}.{os.getpid()}"
    command = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", str(fresh)]
    # Without cgo the programs are static: the same file runs on the host and in a bare image.
    done = subprocess.run(
        [*command, program.package],
        cwd=paths.TOOL_MODULES / program.module,
        env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-mod=readonly"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        fresh.unlink(missing_ok=True)
        raise ClusterError(f"{program.name} does not build:\n{done.stderr.strip()}")
    fresh.replace(path(program.name))


def _write_kwok_stages() -> None:
    command = ["go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"]
    module = Path(run(command, cwd=paths.TOOL_MODULES / "kubernetes").strip())
    folders = [module / "kustomize" / "stage" / name for name in KWOK_STAGES]
    files = [file for folder in folders for file in sorted(folder.glob("*.yaml"))]
    stages = [file.read_text() for file in files if file.name != "kustomization.yaml"]
    kwok_stages().write_text("---\n".join(stages))
