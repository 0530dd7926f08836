"""The command line: `python3 -m dev.cluster COMMAND`."""

import argparse
import sys
from collections.abc import Callable, Sequence

from . import crds, fake_nodes, faults, gpu, lifecycle, network_policies, paths, tools
from .commands import ClusterError
from .gpu import Gpus
from .network import NODE_NAME
from .progress import say

# What a command does with its flags; its exit code is 0 unless it says another.
Action = Callable[[argparse.Namespace], int | None]
SWITCH = ("on", "off")


def parser() -> argparse.ArgumentParser:
    """The commands and their flags; `action` of what it parses is the command's."""
    top = argparse.ArgumentParser(
        prog="python3 -m dev.cluster",
        description="A real one-node Kubernetes cluster on this machine, from source.",
        epilog=f"State lies in {paths.STATE}, built programs in {paths.cache()}. Runs as root.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, words: str, action: Action) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=words, description=words[0].upper() + words[1:])
        made.set_defaults(action=action)
        return made

    up = command("up", "start the cluster, or what of it does not run; builds what is missing", _up)
    up.add_argument("--runtime-only", action="store_true", help="just containerd and BuildKit")
    up.add_argument("--take-over", action="store_true", help="end another checkout's cluster")
    down = command(
        "down",
        "end the cluster; keeps images and the build cache",
        lambda chosen: lifecycle.down(purge=chosen.purge),
    )
    down.add_argument("--purge", action="store_true", help=f"remove {paths.STATE} wholly")
    command(
        "status",
        "say how each component is; exit 0 only when all serve",
        lambda _: 0 if lifecycle.status() else 1,
    )
    command("build", "build the programs, also those of tests alone; start nothing", _build)
    command("prune", "remove images that lost their name to a newer build", _prune)
    command(
        "kubeconfig",
        "print the path of the admin's kubeconfig",
        lambda _: say(str(paths.KUBECONFIG)),
    )
    command(
        "env",
        "print shell lines that put kubectl, helm, buildctl and ctr at hand",
        lambda _: say(environment()),
    )
    _add_nodes(command)
    _add_tests(command)
    return top


def _add_nodes(command: Callable[[str, str, Action], argparse.ArgumentParser]) -> None:
    """Commands about what nodes there are."""
    give = command("gpu", "give a node GPUs (resource and labels) it does not have", _give)
    give.add_argument("--node", default=NODE_NAME, help="default: %(default)s")
    give.add_argument("--count", type=_count, required=True, help="0 takes them away")
    _add_gpu_flags(give)

    fake = command(
        "fake-nodes", "have exactly N fake nodes, whose pods run at once; 0 removes all", _fake
    )
    fake.add_argument("n", type=_count, metavar="N")
    fake.add_argument("--gpus", type=_count, default=0, help="on each; default: none")
    _add_gpu_flags(fake)


def _add_tests(command: Callable[[str, str, Action], argparse.ArgumentParser]) -> None:
    """Commands for what only some tests need."""
    policies = command(
        "network-policies",
        "enforce NetworkPolicy objects, or let every connection pass again",
        lambda chosen: network_policies.switch(on=chosen.switch == "on"),
    )
    policies.add_argument("switch", choices=SWITCH)
    definitions = command(
        "crds",
        "put another project's CRDs into the cluster, without the project, or remove them",
        lambda chosen: crds.switch(chosen.project, on=chosen.switch == "on"),
    )
    definitions.add_argument("project", choices=sorted(crds.SOURCES))
    definitions.add_argument("switch", choices=SWITCH)
    for fault in faults.FAULTS:
        broken = command(fault.name, fault.words, lambda chosen: chosen.act(chosen.component))
        broken.set_defaults(act=fault.act)
        broken.add_argument("component", choices=fault.components)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    chosen = parser().parse_args(arguments)
    try:
        return chosen.action(chosen) or 0
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130


def _up(chosen: argparse.Namespace) -> None:
    lifecycle.up(take_over=chosen.take_over, runtime_only=chosen.runtime_only)
    say('Put kubectl and the rest at hand: eval "$(python3 -m dev.cluster env)"')


def _build(_: argparse.Namespace) -> None:
    lifecycle.build()
    lifecycle.build_extras()


def _prune(_: argparse.Namespace) -> None:
    lifecycle.prune()


def _give(chosen: argparse.Namespace) -> None:
    gpu.give(chosen.node, Gpus(chosen.count, chosen.product, chosen.memory))


def _fake(chosen: argparse.Namespace) -> None:
    fake_nodes.scale(chosen.n, Gpus(chosen.gpus, chosen.product, chosen.memory))


def environment() -> str:
    """Shell lines for `eval "$(python3 -m dev.cluster env)"`."""
    return "\n".join(
        [
            f'export PATH="{tools.bin_folder()}:$PATH"',
            f'export KUBECONFIG="{paths.KUBECONFIG}"',
            f'export BUILDKIT_HOST="unix://{paths.BUILDKIT_SOCKET}"',
            f'export CONTAINERD_ADDRESS="{paths.CONTAINERD_SOCKET}"',
            'export CONTAINERD_NAMESPACE="k8s.io"',
        ]
    )


def _add_gpu_flags(to: argparse.ArgumentParser) -> None:
    to.add_argument("--product", default=Gpus.product, help="default: %(default)s")
    to.add_argument("--memory", type=_count, default=Gpus.memory, help="MiB; default: %(default)s")


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count")
    return value


if __name__ == "__main__":
    sys.exit(main())
