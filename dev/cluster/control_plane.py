"""etcd, the API server, the controller manager and the scheduler, as processes of this host.

They listen on the node's address and on loopback only: the cluster is not reachable from other
machines. etcd does not wait for the disk, since a cluster that ends badly is started afresh.
"""

import json

from . import certificates, network, paths, processes, tools
from .certificates import CLUSTER_CA, certificate, key, kubeconfig
from .health import answers
from .processes import Component

ETCD = "http://127.0.0.1:12379"
ETCD_PEER = "http://127.0.0.1:12380"
DATA = paths.CLUSTER / "etcd"
AUDIT_LOG = paths.LOGS / "audit.log"
AUDIT_POLICY = paths.CONFIG / "audit-policy.json"

# Kubernetes' own defaults let its controllers write 20 to 50 times a second. With thousands of
# fake pods that limit would be all that a measurement shows, so here the machine is the limit.
CLIENT_LIMITS = ("--kube-api-qps=1000", "--kube-api-burst=2000")
REQUEST_LIMITS = ("--max-requests-inflight=1600", "--max-mutating-requests-inflight=800")
WORKERS = 32
CONCURRENCY = tuple(
    f"--concurrent-{name}-syncs={WORKERS}"
    for name in ("deployment", "replicaset", "endpoint", "service-endpoint", "namespace", "gc")
)


def audit_policy() -> str:
    """Who wrote what and when, without bodies; reads are not recorded."""
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "verbs": ["get", "list", "watch"]},
            {"level": "Metadata"},
        ],
    }
    return json.dumps(policy, indent=2)


def etcd() -> Component:
    """The store of all objects."""
    return Component(
        name="etcd",
        argv=[
            str(tools.path("etcd")),
            f"--data-dir={DATA}",
            f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}",
            f"--listen-peer-urls={ETCD_PEER}",
            f"--initial-advertise-peer-urls={ETCD_PEER}",
            f"--initial-cluster=default={ETCD_PEER}",
            "--unsafe-no-fsync",
            "--quota-backend-bytes=4294967296",
            "--log-level=warn",
        ],
        healthy=lambda: answers(f"{ETCD}/health"),
    )


def api_server() -> Component:
    """The Kubernetes API: certificates for authentication, Node and RBAC for authorization."""
    return Component(
        name="kube-apiserver",
        argv=[
            str(tools.path("kube-apiserver")),
            f"--etcd-servers={ETCD}",
            f"--bind-address={network.NODE_ADDRESS}",
            f"--advertise-address={network.NODE_ADDRESS}",
            f"--service-cluster-ip-range={network.SERVICE_RANGE}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--client-ca-file={CLUSTER_CA}",
            f"--tls-cert-file={certificate('serving')}",
            f"--tls-private-key-file={key('serving')}",
            f"--kubelet-certificate-authority={CLUSTER_CA}",
            f"--kubelet-client-certificate={certificate('apiserver-kubelet-client')}",
            f"--kubelet-client-key={key('apiserver-kubelet-client')}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer=https://kubernetes.default.svc.{network.CLUSTER_DOMAIN}",
            f"--service-account-key-file={certificates.SERVICE_ACCOUNT_KEY}",
            f"--service-account-signing-key-file={certificates.SERVICE_ACCOUNT_KEY}",
            # Aggregated APIs (metrics-server) trust the API server by this certificate.
            f"--requestheader-client-ca-file={certificate('front-proxy-ca')}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={certificate('front-proxy-client')}",
            f"--proxy-client-key-file={key('front-proxy-client')}",
            f"--audit-policy-file={AUDIT_POLICY}",
            f"--audit-log-path={AUDIT_LOG}",
            "--audit-log-maxsize=100",  # megabytes a file
            "--audit-log-maxbackup=3",
            *REQUEST_LIMITS,
        ],
        healthy=lambda: answers(f"{certificates.API_SERVER}/readyz"),
        files={AUDIT_POLICY: audit_policy()},
    )


def controller_manager() -> Component:
    """The built-in controllers: Deployments, endpoints, garbage collection and the rest."""
    config = kubeconfig("kube-controller-manager")
    return Component(
        name="kube-controller-manager",
        argv=[
            str(tools.path("kube-controller-manager")),
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            f"--tls-cert-file={certificate('serving')}",
            f"--tls-private-key-file={key('serving')}",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--root-ca-file={CLUSTER_CA}",
            f"--service-account-private-key-file={certificates.SERVICE_ACCOUNT_KEY}",
            f"--cluster-signing-cert-file={CLUSTER_CA}",
            f"--cluster-signing-key-file={key('ca')}",
            *CLIENT_LIMITS,
            *CONCURRENCY,
        ],
        healthy=lambda: answers("https://127.0.0.1:10257/healthz"),
    )


def scheduler() -> Component:
    """Gives each pod its node."""
    config = kubeconfig("kube-scheduler")
    return Component(
        name="kube-scheduler",
        argv=[
            str(tools.path("kube-scheduler")),
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            f"--tls-cert-file={certificate('serving')}",
            f"--tls-private-key-file={key('serving')}",
            "--leader-elect=false",
            *CLIENT_LIMITS,
        ],
        healthy=lambda: answers("https://127.0.0.1:10259/healthz"),
    )


def components() -> list[Component]:
    """All four, in the order in which they start."""
    return [etcd(), api_server(), controller_manager(), scheduler()]


def start_api() -> None:
    """Start etcd and the API server, and wait until it serves."""
    certificates.create()
    if AUDIT_LOG.exists() and not processes.running("kube-apiserver"):
        AUDIT_LOG.replace(AUDIT_LOG.with_suffix(".log.1"))
    for component in (etcd(), api_server()):
        processes.start(component)
        processes.wait_healthy(component)


def start_controllers() -> None:
    """Start the controller manager and the scheduler; they get ready while the node does."""
    for component in (controller_manager(), scheduler()):
        processes.start(component)
