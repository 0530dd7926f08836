"""containerd and BuildKit: they hold the images, run the pods and build.

Both work in containerd's namespace `k8s.io`: an image that is built is an image the kubelet has.
Knows nothing of Kubernetes beyond that name.
"""

from . import cgroups, images, network, paths, processes, tools
from .commands import succeeds
from .processes import Component

BUILD_CACHE_LIMIT = "30GB"
FREE_SPACE = "10GB"  # the build cache shrinks to leave this much
CONTAINERD_CONFIG = paths.CONFIG / "containerd.toml"
BUILDKIT_CONFIG = paths.CONFIG / "buildkitd.toml"
RUNC_ROOT = paths.RUN / "runc"


def pause_image() -> str:
    """The reference of the image that holds each pod's namespaces."""
    return f"localhost/{paths.NAME}/pause:{tools.digest()}"


def containerd_config() -> str:
    """Configuration of containerd, in its version 4."""
    return f"""\
version = 4
imports = []
root = "{paths.STORE}/containerd"
state = "{paths.RUN}/containerd"
disabled_plugins = [
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
]

[plugins."io.containerd.server.v1.grpc"]
address = "{paths.CONTAINERD_SOCKET}"
[plugins."io.containerd.server.v1.ttrpc"]
address = "{paths.CONTAINERD_SOCKET}.ttrpc"
[plugins."io.containerd.shim.v1.manager"]
socket_dir = "{paths.RUN}/shims"
[plugins."io.containerd.internal.v1.opt"]
path = "{paths.RUN}/opt"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause_image()}"

[plugins."io.containerd.cri.v1.runtime"]
netns_mounts_under_state_dir = true
# A process that is not the machine's first may not lower a container's score below its own.
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "runc"
Root = "{RUNC_ROOT}"
SystemdCgroup = false

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{tools.bin_folder()}"]
conf_dir = "{network.CNI_CONFIG}"
use_internal_loopback = true
"""


def buildkit_config() -> str:
    """Configuration of BuildKit: containerd's worker, the host's network, a bounded cache."""
    return f"""\
root = "{paths.STORE}/buildkit"
insecure-entitlements = ["network.host"]

[grpc]
address = ["unix://{paths.BUILDKIT_SOCKET}"]

[worker.oci]
enabled = false

[worker.containerd]
enabled = true
address = "{paths.CONTAINERD_SOCKET}"
namespace = "{images.NAMESPACE}"
snapshotter = "overlayfs"
# A build reaches what the host reaches, a mirror on a loopback address included.
networkMode = "host"
defaultCgroupParent = "{cgroups.BUILDS}"
gc = true
[worker.containerd.runtime]
name = "io.containerd.runc.v2"
[worker.containerd.runtime.options]
BinaryName = "runc"
Root = "{RUNC_ROOT}"
[[worker.containerd.gcpolicy]]
all = true
maxUsedSpace = "{BUILD_CACHE_LIMIT}"
minFreeSpace = "{FREE_SPACE}"
"""


def components() -> list[Component]:
    """Both processes, in the order in which they start."""
    containerd = Component(
        name="containerd",
        argv=[str(tools.path("containerd")), "--config", str(CONTAINERD_CONFIG)],
        healthy=lambda: succeeds(
            [tools.path("ctr"), "-a", paths.CONTAINERD_SOCKET, "version"], timeout=5
        ),
        files={
            CONTAINERD_CONFIG: containerd_config(),
            network.CNI_CONFIG / "10-pods.conflist": network.cni_config(),
        },
    )
    buildkit = Component(
        name="buildkitd",
        argv=[str(tools.path("buildkitd")), "--config", str(BUILDKIT_CONFIG)],
        healthy=lambda: succeeds(
            [tools.path("buildctl"), "--addr", f"unix://{paths.BUILDKIT_SOCKET}", "debug", "info"],
            timeout=5,
        ),
        files={BUILDKIT_CONFIG: buildkit_config()},
    )
    return [containerd, buildkit]


def start() -> None:
    """Start both, and have the pause image at hand. Does nothing to what runs."""
    paths.STORE.mkdir(parents=True, exist_ok=True)
    for component in components():
        processes.start(component)
        processes.wait_healthy(component)
    images.load(pause_image(), {"/pause": tools.path("pause")}, entrypoint=["/pause"])


def prune_images() -> list[str]:
    """Remove the images that nobody can ask for any more; return their names."""
    useless = images.useless(images.ctr("images", "list"), keep=tools.digest())
    if useless:
        images.ctr("images", "remove", *useless)
    return useless


def remove_containers() -> None:
    """Remove every container and pod sandbox with its snapshot; images stay."""
    if tasks := images.ctr("tasks", "list", "--quiet").split():
        images.ctr("tasks", "delete", "--force", *tasks)
    if containers := images.ctr("containers", "list", "--quiet").split():
        images.ctr("containers", "delete", *containers)
    sandboxes = images.ctr("sandboxes", "list").splitlines()[1:]  # below the header
    if names := [line.split()[0] for line in sandboxes]:
        images.ctr("sandboxes", "remove", "--force", *names)
