"""Up, down and status of the whole: the order of things, and who may do them."""

import shutil
import time

from . import (
    addons,
    cgroups,
    checks,
    control_plane,
    crds,
    gpu,
    network,
    network_policies,
    node,
    ownership,
    packages,
    paths,
    preflight,
    processes,
    runtime,
    teardown,
    tools,
)
from .commands import ClusterError
from .ownership import Decision
from .processes import Component
from .progress import say, step


def build(*, runtime_only: bool = False) -> None:
    """Have every program at hand: Debian's packages, then those built from source.

    What the machine does not allow is said before the long build.

    Raises:
        ClusterError: the machine lacks something, or a program cannot be had.
    """
    preflight.check_root()
    packages.install()
    with step("Checking what this machine allows"):
        preflight.check(preflight.MACHINE)
    tools.build(modules=["containers"] if runtime_only else ["containers", "kubernetes"])


def build_extras() -> None:
    """Have at hand what only some tests ask for, and what they would else build themselves.

    Raises:
        ClusterError: something cannot be had.
    """
    checks.CHECKS.build()
    network_policies.ENFORCER.build()
    for name in crds.SOURCES:
        crds.fetch(name)


def up(*, take_over: bool = False, runtime_only: bool = False) -> None:
    """Start what does not run yet, and wait until it serves.

    Args:
        take_over: end another checkout's cluster if one runs.
        runtime_only: containerd and BuildKit alone, to build images.

    Raises:
        ClusterError: the machine lacks something, or belongs to another checkout.
    """
    began = time.monotonic()
    with ownership.only_command():
        preflight.check_root()
        decision = decide(take_over=take_over)
        build(runtime_only=runtime_only)
        if decision is not Decision.CONTINUE:
            free_machine(decision)
        ownership.claim()
        with step("Starting containerd and BuildKit"):
            start_runtime()
        if not runtime_only:
            start_kubernetes()
    say(f"Up after {time.monotonic() - began:.0f} s.")


def start_runtime() -> None:
    """Start what holds and runs images, on a machine prepared for it."""
    # What containerd's store still holds of a cluster that is gone, a new one knows nothing of.
    # While containerd runs, these would be pods and builds at work.
    orphans = not processes.running("containerd") and not control_plane.DATA.exists()
    cgroups.create()
    network.up()
    runtime.start()
    if orphans:
        runtime.remove_containers()
    runtime.prune_images()


def start_kubernetes() -> None:
    """Start everything above the runtime."""
    if not control_plane.DATA.exists():
        shutil.rmtree(paths.LOGS / "pods", ignore_errors=True)
    had_kubelet = processes.running("kubelet") is not None
    with step("Starting etcd and the API server"):
        control_plane.start_api()
    with step("Starting the controllers, kubelet and kube-proxy"):
        control_plane.start_controllers()
        node.start()
        for component in control_plane.components():
            processes.wait_healthy(component)
    with step("Applying CoreDNS, metrics-server and kwok"):
        addons.start()
    with step("Waiting for the node"):
        node.wait_ready()
        if not had_kubelet:
            gpu.restore()
    with step("Waiting for DNS and metrics"):
        addons.wait_ready()


def prune() -> None:
    """Remove images that lost their name to a newer build.

    Raises:
        ClusterError: this checkout's cluster is not up.
    """
    if ownership.owner() != paths.CHECKOUT or not processes.running("containerd"):
        raise ClusterError("nothing is up here: run `up --runtime-only` first")
    removed = runtime.prune_images()
    say(f"Removed {len(removed)} images that nothing names any more.")


def decide(*, take_over: bool) -> Decision:
    """What `up` may do on this machine.

    Raises:
        ClusterError: another checkout's cluster runs and is not to be taken over.
    """
    owner = ownership.owner()
    alive = bool(processes.all_running())
    decision = ownership.decide(owner, paths.CHECKOUT, alive=alive, take_over=take_over)
    if decision is Decision.REFUSE:
        raise ClusterError(
            f"the cluster on this machine belongs to {owner}: stop it there with "
            "`python3 -m dev.cluster down`, or end it from here with `up --take-over`"
        )
    return decision


def free_machine(decision: Decision) -> None:
    """Clean up after the dead or end the living, so that this checkout can start afresh.

    Raises:
        ClusterError: something else on the machine has the cluster's addresses or ports.
    """
    whose = ownership.owner() or paths.CHECKOUT
    if decision is Decision.TAKE_OVER:
        say(f"Ending the cluster of {whose} and taking over")
        teardown.end_cluster(whose)
    elif teardown.leftovers(whose):
        say(f"Cleaning up: the cluster of {whose} ended without `down`")
        teardown.end_cluster(whose)
    preflight.check(preflight.UNUSED)


def down(*, purge: bool = False) -> None:
    """End this checkout's cluster, or what a dead one left on the machine.

    Args:
        purge: remove the images and the build cache too.

    Raises:
        ClusterError: the running cluster is another checkout's, or something does not go away.
    """
    began = time.monotonic()
    with ownership.only_command():
        whose = ownership.owner() or paths.CHECKOUT
        if whose != paths.CHECKOUT and processes.all_running():
            raise ClusterError(f"the cluster on this machine belongs to {whose}: stop it there")
        teardown.end_cluster(whose)
        if left := teardown.leftovers(whose):
            raise ClusterError("these stay behind:" + "".join(f"\n  - {thing}" for thing in left))
        if purge:
            teardown.purge(paths.CHECKOUT)
    say(f"Down after {time.monotonic() - began:.0f} s; nothing is left running.")


def components() -> list[Component]:
    """Every process of a whole cluster, in the order in which they start."""
    above = (control_plane, node, addons)
    return [*runtime.components(), *(c for module in above for c in module.components())]


def extras() -> list[Component]:
    """Those that a cluster need not have and that run now."""
    enforcer = network_policies.component()
    return [enforcer] if processes.running(enforcer.name) else []


def state(component: Component) -> str:
    """How a component is: `serves`, `does not serve`, `paused` or `stopped`."""
    if processes.running(component.name) is None:
        return "stopped"
    if processes.paused(component.name):
        return "paused"
    return "serves" if component.healthy() else "does not serve"


def status() -> bool:
    """Print each component's state; return whether all is well."""
    owner = ownership.owner()
    if owner != paths.CHECKOUT:
        say(f"No cluster of this checkout is up (the machine's owner: {owner or 'nobody'})")
        for thing in teardown.leftovers(owner or paths.CHECKOUT) if owner is None else []:
            say(f"  left behind: {thing}")
        return False
    states = {}
    for component in [*components(), *extras()]:
        pid = processes.running(component.name)
        states[component.name] = state(component)
        say(f"{component.name:<24} {pid or '-':>8}  {states[component.name]}")
    node_state = "unknown without the API server"
    if states["kube-apiserver"] == "serves":
        node_state = node.readiness()
    say(f"{'node ' + network.NODE_NAME:<24} {'':>8}  {node_state}")
    return set(states.values()) == {"serves"} and node_state == "Ready"
