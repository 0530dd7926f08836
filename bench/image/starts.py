"""Cold starts of containers: from `ctr run` to the first token of the first request.

The image is unpacked and its files are in the page cache, as on a node that has run it before. A
container gets the host's network, and all of its processors. Knows how containerd runs a container;
how a start is measured is `bench.serving.starts`.
"""

from __future__ import annotations

from bench.image.variants import MODEL, Variant
from bench.serving.servers import Server
from bench.serving.starts import Start, start
from dev.cluster import images, paths, tools

PREFIX = "bench-image-"
# What a pod of the operator gets: nothing to write to but /tmp.
READ_ONLY = ("--read-only", "--mount", "type=tmpfs,dst=/tmp,options=mode=1777")


def measure(variant: Variant, hub: str) -> Start:
    """Start a container of a variant's cpu image, ask it once, end it.

    Args:
        variant: whose image, unpacked in containerd.
        hub: the address that a model is fetched from.

    Raises:
        ServerError: It did not come to answer.
    """
    try:
        return start(server(variant, hub))
    finally:
        clean()


def server(variant: Variant, hub: str) -> Server:
    """How a container of a variant's cpu image is started, on a free port of loopback."""
    variables = {"LLM_HOST": "127.0.0.1", "LLM_PORT": "{port}", **variant.settings(hub)}
    ctr = (str(tools.path("ctr")), "-a", str(paths.CONTAINERD_SOCKET), "-n", images.NAMESPACE)
    return Server(
        name=variant.name,
        model=MODEL.id,
        command=(
            *(*ctr, "run", "--rm", "--net-host"),
            *(READ_ONLY if variant.read_only else ()),
            *(f"--env={name}={value}" for name, value in variables.items()),
            *(variant.image("cpu").reference, f"{PREFIX}{{port}}"),
        ),
        ready="/readyz",
        phases="/startupz",
    )


def clean() -> None:
    """Remove what a container that did not end by itself left behind."""
    for name in images.ctr("tasks", "list", "--quiet").split():
        if name.startswith(PREFIX):
            images.ctr("tasks", "delete", "--force", name)
    for name in images.ctr("containers", "list", "--quiet").split():
        if name.startswith(PREFIX):
            images.ctr("containers", "delete", name)
