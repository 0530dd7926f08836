"""The one real node, `dev`: kubelet and kube-proxy on this host.

The node's address lies on a link of the cluster's own, so nothing here depends on the machine's
network. Knows nothing of what runs in the pods.
"""

import json
from pathlib import Path

from . import cgroups, network, paths, processes, tools
from .certificates import CLUSTER_CA, certificate, key, kubeconfig
from .commands import ClusterError
from .health import answers
from .kubectl import Json, kubectl
from .network import NODE_NAME
from .processes import Component

KUBELET_CONFIG = paths.CONFIG / "kubelet.json"
KUBE_PROXY_CONFIG = paths.CONFIG / "kube-proxy.json"
RESOLV_CONF = paths.CONFIG / "resolv.conf"
KUBELET_ROOT = paths.CLUSTER / "kubelet"
MAX_PODS = 250


def kubelet_config() -> Json:
    """KubeletConfiguration for a machine that does other things too."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.NODE_ADDRESS,
        "healthzBindAddress": "127.0.0.1",
        "containerRuntimeEndpoint": f"unix://{paths.CONTAINERD_SOCKET}",
        "tlsCertFile": str(certificate("serving")),
        "tlsPrivateKeyFile": str(key("serving")),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(CLUSTER_CA)},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [network.DNS_SERVICE],
        "clusterDomain": network.CLUSTER_DOMAIN,
        "resolvConf": str(RESOLV_CONF),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroups.PODS,
        "failCgroupV1": False,
        # The machine's other processes are not the kubelet's to bound.
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        # A full disk is no reason to evict pods or to delete images built here: no disk thresholds.
        "evictionHard": {"memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "maxPods": MAX_PODS,
        "serializeImagePulls": False,
        # kube-proxy and the CNI plugins speak nftables: no iptables chains on this machine.
        "makeIPTablesUtilChains": False,
        "podLogsDir": str(paths.LOGS / "pods"),
        "volumePluginDir": str(paths.CLUSTER / "volume-plugins"),
        "nodeStatusUpdateFrequency": "5s",
    }


def kube_proxy_config() -> Json:
    """KubeProxyConfiguration: Services as nftables rules."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig("kube-proxy"))},
        "hostnameOverride": NODE_NAME,
        "mode": "nftables",
        "clusterCIDR": network.POD_RANGE,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # Zero leaves the machine's own limits as they are.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }


def resolv_conf(host: str) -> str:
    """The resolver file for pods: the host's, less name servers that only the host reaches."""
    lines = host.splitlines()
    return "".join(f"{line}\n" for line in lines if not line.startswith("nameserver 127."))


def kubelet() -> Component:
    """Runs the pods."""
    return Component(
        name="kubelet",
        argv=[
            str(tools.path("kubelet")),
            f"--config={KUBELET_CONFIG}",
            f"--kubeconfig={kubeconfig('kubelet')}",
            f"--root-dir={KUBELET_ROOT}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={network.NODE_ADDRESS}",
        ],
        healthy=lambda: answers("http://127.0.0.1:10248/healthz"),
        files={
            KUBELET_CONFIG: json.dumps(kubelet_config(), indent=2),
            RESOLV_CONF: resolv_conf(Path("/etc/resolv.conf").read_text()),
        },
    )


def kube_proxy() -> Component:
    """Gives Services their addresses."""
    return Component(
        name="kube-proxy",
        argv=[str(tools.path("kube-proxy")), f"--config={KUBE_PROXY_CONFIG}"],
        healthy=lambda: answers("http://127.0.0.1:10256/livez"),
        files={KUBE_PROXY_CONFIG: json.dumps(kube_proxy_config(), indent=2)},
    )


def components() -> list[Component]:
    """Both."""
    return [kubelet(), kube_proxy()]


def start() -> None:
    """Start both; returns before the node is ready."""
    for component in components():
        processes.start(component)


def wait_ready(*, timeout: int = 60) -> None:
    """Wait until the node is Ready.

    Raises:
        ClusterError: it is not in time; says what the node says of itself.
    """
    for component in components():
        processes.wait_healthy(component, timeout=timeout)
    wait = f"--timeout={timeout}s"
    try:
        kubectl("wait", "--for=create", f"node/{NODE_NAME}", wait)
        kubectl("wait", "--for=condition=Ready", f"node/{NODE_NAME}", wait)
    except ClusterError as error:
        raise ClusterError(f"{error}\nThe node says: {readiness()}") from None


def readiness() -> str:
    """`Ready`, or the node's own sentence about why it is not."""
    path = '{range .status.conditions[?(@.type=="Ready")]}{.status} {.message}{end}'
    try:
        words = kubectl("get", "node", NODE_NAME, "-o", f"jsonpath={path}", timeout=10)
    except ClusterError as error:
        return str(error)
    status, _, message = words.partition(" ")
    return "Ready" if status == "True" else message or "it has no Ready condition yet"
