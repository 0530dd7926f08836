"""The cluster's own certificate authority, certificates and kubeconfigs, made with openssl.

Made anew with each fresh control plane and valid for a year. Knows who the components are to
Kubernetes (user and groups); knows nothing of how they run.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from . import network, paths
from .commands import run

DAYS = "365"
API_SERVER = f"https://{network.NODE_ADDRESS}:6443"
CLUSTER_CA = paths.PKI / "ca.crt"
SERVICE_ACCOUNT_KEY = paths.PKI / "service-accounts.key"

# Every name and address under which a component of the cluster is called over TLS.
SERVING_NAMES = (
    "DNS:localhost",
    f"DNS:{network.NODE_NAME}",
    "DNS:kubernetes",
    "DNS:kubernetes.default",
    "DNS:kubernetes.default.svc",
    f"DNS:kubernetes.default.svc.{network.CLUSTER_DOMAIN}",
    "IP:127.0.0.1",
    f"IP:{network.NODE_ADDRESS}",
    f"IP:{network.API_SERVICE}",
)


@dataclass(frozen=True)
class User:
    """Somebody the API server knows by certificate: a file name, a user name, a group."""

    file: str
    name: str
    group: str


MASTERS = "system:masters"
USERS = (
    User("admin", "admin", MASTERS),
    User("apiserver-kubelet-client", "kube-apiserver-kubelet-client", MASTERS),
    User("kwok", "kwok", MASTERS),
    User("kube-controller-manager", "system:kube-controller-manager", ""),
    User("kube-scheduler", "system:kube-scheduler", ""),
    User("kube-proxy", "system:kube-proxy", ""),
    User("kubelet", f"system:node:{network.NODE_NAME}", "system:nodes"),
)


def certificate(name: str) -> Path:
    """The file of a certificate."""
    return paths.PKI / f"{name}.crt"


def key(name: str) -> Path:
    """The file of a certificate's private key."""
    return paths.PKI / f"{name}.key"


def kubeconfig(name: str) -> Path:
    """The file with which a user reaches the API server; the admin's is the person's own."""
    return paths.KUBECONFIG if name == "admin" else paths.CONFIG / f"{name}.kubeconfig"


def create() -> None:
    """Make every key, certificate and kubeconfig, unless they are there."""
    done = paths.PKI / "complete"
    if done.exists():
        return
    for folder in (paths.PKI, paths.CONFIG):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _authority("ca", "llm-operator-dev")
    _authority("front-proxy-ca", "llm-operator-dev-front-proxy")
    _sign("serving", f"/CN={network.NODE_NAME}", authority="ca", names=",".join(SERVING_NAMES))
    _sign("front-proxy-client", "/CN=front-proxy-client", authority="front-proxy-ca")
    for user in USERS:
        group = f"/O={user.group}" if user.group else ""
        _sign(user.file, f"{group}/CN={user.name}", authority="ca")
        _write_kubeconfig(user)
    run(["openssl", "genrsa", "-out", SERVICE_ACCOUNT_KEY, "2048"])
    done.touch()


def _authority(name: str, subject: str) -> None:
    _new_key(name)
    usage = "keyUsage=critical,keyCertSign,cRLSign"
    _request(name, "-subj", f"/CN={subject}", "-addext", usage)


def _sign(name: str, subject: str, *, authority: str, names: str = "") -> None:
    _new_key(name)
    signer = ["-CA", str(certificate(authority)), "-CAkey", str(key(authority))]
    extensions = ["basicConstraints=CA:FALSE", "extendedKeyUsage=serverAuth,clientAuth"]
    if names:
        extensions.append(f"subjectAltName={names}")
    added = [argument for extension in extensions for argument in ("-addext", extension)]
    _request(name, "-subj", subject, *signer, *added)


def _request(name: str, *arguments: str) -> None:
    files = ["-key", str(key(name)), "-out", str(certificate(name))]
    run(["openssl", "req", "-x509", "-new", "-days", DAYS, *files, *arguments])


def _new_key(name: str) -> None:
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key(name)])


def _write_kubeconfig(user: User) -> None:
    def inline(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": paths.NAME,
        "contexts": [
            {"name": paths.NAME, "context": {"cluster": paths.NAME, "user": user.name}},
        ],
        "clusters": [
            {
                "name": paths.NAME,
                "cluster": {
                    "server": API_SERVER,
                    "certificate-authority-data": inline(CLUSTER_CA),
                },
            },
        ],
        "users": [
            {
                "name": user.name,
                "user": {
                    "client-certificate-data": inline(certificate(user.file)),
                    "client-key-data": inline(key(user.file)),
                },
            },
        ],
    }
    file = kubeconfig(user.file)
    # JSON is YAML, and the standard library writes it.
    file.write_text(json.dumps(document, indent=2) + "\n")
    file.chmod(0o600)
