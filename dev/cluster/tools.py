"""The programs that the cluster is made of: which they are and where they lie.

Knows nothing of how they are built (`toolset`) nor of how they are run.
"""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from . import paths, toolset
from .commands import run
from .toolset import Program, Toolset

# The folders of the kwok module that hold the stages: nodes are Ready and pods run at once.
KWOK_STAGES = ("node/fast", "node/heartbeat", "pod/fast")

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


TOOLS = Toolset(PROGRAMS)


def digest() -> str:
    """Twelve hex digits that change when anything the programs are built from changes."""
    return toolset.digest(TOOLS)


def bin_folder() -> Path:
    """The folder that holds the programs, whether or not they are built."""
    return TOOLS.bin_folder()


def path(name: str) -> Path:
    """The path of one program."""
    return TOOLS.path(name)


def kwok_stages() -> Path:
    """The file that tells kwok how its nodes and pods live: kwok's own quick stages."""
    chosen = hashlib.sha256(repr(KWOK_STAGES).encode()).hexdigest()[:8]
    return TOOLS.folder() / f"kwok-stages-{chosen}.yaml"


def environment() -> dict[str, str]:
    """This process's environment with the programs first on PATH."""
    return {**os.environ, "PATH": f"{bin_folder()}:{os.environ.get('PATH', '')}"}


def build(*, modules: Collection[str] = ("containers", "kubernetes")) -> None:
    """Build the programs that are missing, one at a time; an interrupted build goes on here.

    Args:
        modules: whose programs; `containers` alone is enough to build images.

    Raises:
        ClusterError: Go is missing or a program does not build.
    """
    TOOLS.build(modules=modules)
    if "kubernetes" in modules and not kwok_stages().exists():
        toolset.check_go()
        _write_kwok_stages()


def _write_kwok_stages() -> None:
    command = ["go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"]
    module = Path(run(command, cwd=paths.TOOL_MODULES / "kubernetes").strip())
    folders = [module / "kustomize" / "stage" / name for name in KWOK_STAGES]
    files = [file for folder in folders for file in sorted(folder.glob("*.yaml"))]
    stages = [file.read_text() for file in files if file.name != "kustomization.yaml"]
    kwok_stages().write_text("---\n".join(stages))
