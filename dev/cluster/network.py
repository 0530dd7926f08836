"""The cluster's addresses, its one link, and its rules in nftables.

Pods hang on point-to-point links, so every packet between them passes the host's forwarding and
with it kube-proxy's rules; a shared bridge would need br_netfilter for that.
"""

import json
from pathlib import Path

from . import paths
from .commands import run, succeeds

NAME = paths.NAME
NODE_NAME = "dev"
LINK = "llm-dev"
NODE_ADDRESS = "10.201.0.1"
POD_RANGE = "10.244.0.0/22"
FAKE_POD_RANGE = "10.245.0.0/16"  # of the pods that kwok plays; leads nowhere
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"  # the first of the range: the API server gives it to itself
DNS_SERVICE = "10.96.0.10"
CLUSTER_DOMAIN = "cluster.local"

CNI_CONFIG = paths.CLUSTER / "cni"
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")

# The tables that the cluster's programs make: kube-proxy, the CNI plugins, this module.
OWN_TABLE = ("ip", NAME)
TABLES = (
    OWN_TABLE,
    ("ip", "kube-proxy"),
    ("ip6", "kube-proxy"),
    ("ip", "cni_hostport"),
    ("ip6", "cni_hostport"),
)

# Pods reach the world under the host's address; among themselves they keep their own. Behind the
# address of a fake pod is nobody: who calls it is told at once, also by way of a Service. (With an
# unreachable route the host would send a Service's packet to nowhere, and wait.)
RULES = f"""\
add table ip {NAME}
delete table ip {NAME}
table ip {NAME} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {POD_RANGE} ip daddr != {{ {POD_RANGE}, {NODE_ADDRESS} }} masquerade
  }}
  chain nobody {{
    ip daddr {FAKE_POD_RANGE} meta l4proto tcp reject with tcp reset
    ip daddr {FAKE_POD_RANGE} reject with icmp host-unreachable
  }}
  chain output {{
    type filter hook output priority filter;
    jump nobody
  }}
  chain forward {{
    type filter hook forward priority filter;
    jump nobody
  }}
}}
"""


def cni_config() -> str:
    """How containerd's CNI plugins connect a pod."""
    pods = {
        "type": "ptp",
        "mtu": 1500,
        "ipam": {
            "type": "host-local",
            "dataDir": str(paths.CLUSTER / "leases"),
            "ranges": [[{"subnet": POD_RANGE}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables"}
    return json.dumps({"cniVersion": "1.0.0", "name": NAME, "plugins": [pods, ports]}, indent=2)


def up() -> None:
    """Make the link with the node's address, the rules, and let the host forward for the pods."""
    if not link_exists():
        # A bridge without ports: a link type that every kernel with containers has.
        run(["ip", "link", "add", "name", LINK, "type", "bridge"])
    run(["ip", "address", "replace", f"{NODE_ADDRESS}/32", "dev", LINK])
    run(["ip", "link", "set", LINK, "up"])
    _remember_forwarding()
    FORWARDING.write_text("1")
    # On the own link, so that no packet to a fake pod takes the machine's way to the world.
    run(["ip", "route", "replace", FAKE_POD_RANGE, "dev", LINK])
    run(["nft", "-f", "-"], text=RULES)


def down() -> None:
    """Remove what `up`, kube-proxy and the CNI plugins made. Pods' links go with their pods."""
    for family, table in TABLES:
        if table_exists(family, table):
            run(["nft", "delete", "table", family, table])
    if link_exists():
        run(["ip", "link", "delete", LINK])
    if _forwarding_before().exists():
        FORWARDING.write_text(_forwarding_before().read_text())
        _forwarding_before().unlink()


def leftovers() -> list[str]:
    """What is there of the cluster's network, in words; empty after `down`."""
    found = [f"link {LINK}"] if link_exists() else []
    found += [f"nftables table {f} {t}" for f, t in TABLES if table_exists(f, t)]
    return found


def link_exists() -> bool:
    """Whether the link with the node's address is there."""
    return Path("/sys/class/net", LINK).exists()


def table_exists(family: str, table: str) -> bool:
    """Whether nftables holds a table."""
    return succeeds(["nft", "list", "table", family, table])


def _forwarding_before() -> Path:
    return paths.RUN / "ip_forward"


def _remember_forwarding() -> None:
    if not _forwarding_before().exists():
        _forwarding_before().write_text(FORWARDING.read_text())
