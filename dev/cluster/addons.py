"""What every cluster has beside the control plane: DNS, metrics, and kwok for fake nodes.

CoreDNS and metrics-server are ordinary pods, from images that hold one static program each. kwok
is a process of this host: it plays kubelet for nodes that do not exist.
"""

import json
from string import Template

from . import images, network, node, paths, processes, tools
from .certificates import kubeconfig
from .health import answers
from .kubectl import apply, kubectl
from .processes import Component

MANIFESTS = paths.CHECKOUT / "dev" / "cluster" / "manifests"
KWOK_ADDRESS = "127.0.0.1:10247"
KWOK_CONFIG = paths.CONFIG / "kwok.json"
KWOK_WORKERS = 32  # thousands of fake pods wait for the API server, not for kwok


def image(program: str) -> str:
    """The reference of the image that holds a program of `dev/tools/`."""
    return f"localhost/{paths.NAME}/{program}:{tools.digest()}"


def manifest(name: str) -> str:
    """A manifest of `manifests/` with this cluster's values in it."""
    # Without a name server that pods reach, names of the world stay unknown.
    servers = "nameserver" in node.RESOLV_CONF.read_text()
    return Template((MANIFESTS / f"{name}.yaml").read_text()).substitute(
        image=image(name),
        domain=network.CLUSTER_DOMAIN,
        address=network.DNS_SERVICE,
        forward="forward . /etc/resolv.conf" if servers else "",
    )


def kwok_config() -> str:
    """KwokConfiguration: the addresses of fake pods, and how many kwok plays at once."""
    config = {
        "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
        "kind": "KwokConfiguration",
        "options": {
            "cidr": network.FAKE_POD_RANGE,
            "podPlayStageParallelism": KWOK_WORKERS,
            "nodePlayStageParallelism": KWOK_WORKERS,
            "nodeLeaseParallelism": KWOK_WORKERS,
        },
    }
    return json.dumps(config, indent=2)


def kwok() -> Component:
    """Plays kubelet for the nodes labelled type=kwok, by kwok's own stages."""
    return Component(
        name="kwok",
        argv=[
            str(tools.path("kwok")),
            f"--kubeconfig={kubeconfig('kwok')}",
            f"--config={tools.kwok_stages()}",
            f"--config={KWOK_CONFIG}",
            "--manage-nodes-with-label-selector=type=kwok",
            f"--server-address={KWOK_ADDRESS}",
            # A kwok with leases that starts anew waits for those of the old one to expire, and then
            # passes over pods whose time came meanwhile. Its nodes report by their status instead.
            "--node-lease-duration-seconds=0",
        ],
        healthy=lambda: answers(f"http://{KWOK_ADDRESS}/healthz"),
        files={KWOK_CONFIG: kwok_config()},
    )


def components() -> list[Component]:
    """Those that are processes of this host."""
    return [kwok()]


def start() -> None:
    """Start or update all; returns before they serve."""
    for name in ("coredns", "metrics-server"):
        program = f"/{name}"
        images.load(image(name), {program: tools.path(name)}, entrypoint=[program])
        apply(manifest(name))
    processes.start(kwok())


def wait_ready(*, timeout: int = 90) -> None:
    """Wait until names resolve, metrics are served and kwok runs."""
    processes.wait_healthy(kwok(), timeout=timeout)
    wait = ("-n", "kube-system", f"--timeout={timeout}s")
    kubectl("wait", "--for=condition=Available", "deployment/coredns", *wait)
    kubectl("wait", "--for=condition=Available", "deployment/metrics-server", *wait)
    api = "apiservice/v1beta1.metrics.k8s.io"
    kubectl("wait", "--for=condition=Available", api, f"--timeout={timeout}s")
