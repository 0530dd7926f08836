"""Network policies that bind: kube-router's firewall, started on demand.

Without it the cluster takes NetworkPolicy objects and lets every connection pass, as a cluster
whose network plugin does not know them would. kube-router runs as a process of this host, with its
routing and its service proxy off, and keeps iptables rules and IP sets for the pods of this node.
It leaves them when it ends; here they are removed.
"""

import shutil

from . import network, ownership, packages, processes
from .certificates import kubeconfig
from .commands import run, succeeds
from .processes import Component
from .progress import step
from .toolset import Program, Toolset

NAME = "kube-router"
ENFORCER = Toolset(
    (
        Program(
            NAME,
            "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
            "network-policies",
        ),
    )
)
CHAIN = "KUBE-ROUTER-FORWARD"
# The last rule of a whole set: lets pass what a policy has marked.
LAST_RULE = "--mark 0x20000/0x20000 -j ACCEPT"
# What kube-router calls its chains and its sets.
CHAIN_PREFIXES = ("KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-")
SET_PREFIXES = ("KUBE-SRC-", "KUBE-DST-")


def component() -> Component:
    """The enforcer; it serves once its rules are in force."""
    return Component(
        name=NAME,
        argv=[
            str(ENFORCER.path(NAME)),
            f"--kubeconfig={kubeconfig('admin')}",
            f"--hostname-override={network.NODE_NAME}",
            f"--service-cluster-ip-range={network.SERVICE_RANGE}",
            "--run-firewall=true",
            "--run-router=false",
            "--run-service-proxy=false",
            "--run-loadbalancer=false",
            "--enable-cni=false",
            "--enable-ipv6=false",
            # It would listen on every address of the machine.
            "--health-port=0",
            "--metrics-port=0",
        ],
        healthy=in_force,
    )


def switch(*, on: bool) -> None:
    """Enforce, and return when that is so; or end the enforcer and remove its rules.

    Raises:
        ClusterError: this checkout's cluster is not up, a package or the program cannot be had, or
            it does not serve.
    """
    ownership.check_up()
    with ownership.only_command():
        if on:
            packages.install(packages.NETWORK_POLICIES)
            ENFORCER.build()
            with step("Starting to enforce network policies"):
                processes.start(component())
                processes.wait_healthy(component(), timeout=30)
        else:
            processes.stop(NAME)
            remove_rules()


def in_force() -> bool:
    """Whether a whole set of rules is in the kernel."""
    rules = ["iptables", "-w", "-S", CHAIN]
    return succeeds(rules) and LAST_RULE in run(rules)


def leftovers() -> list[str]:
    """What is there of the enforcer's, in words; empty without it."""
    if shutil.which("iptables") is None:
        return []
    there = succeeds(["iptables", "-w", "-S", CHAIN])
    return [f"iptables chain {CHAIN}"] if there else []


def remove_rules() -> None:
    """Remove the rules and sets, whoever left them there."""
    if not leftovers():
        return
    kept = without_own_rules(run(["iptables-save", "-t", "filter"]))
    run(["iptables-restore", "-w", "-T", "filter"], text=kept)
    if "-A " not in kept:  # iptables made the table for these rules alone
        run(["nft", "delete", "table", "ip", "filter"])
    for name in run(["ipset", "list", "-name"]).split():
        if name.startswith(SET_PREFIXES):
            run(["ipset", "destroy", name])


def without_own_rules(dump: str) -> str:
    """What `iptables-save` printed, less the lines that name a chain of the enforcer's."""
    lines = dump.splitlines(keepends=True)
    return "".join(line for line in lines if not any(p in line for p in CHAIN_PREFIXES))
