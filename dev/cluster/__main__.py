"""The command line: `python3 -m dev.cluster COMMAND`."""

import argparse
import sys
from collections.abc import Sequence

from . import fake_nodes, gpu, lifecycle, paths, tools
from .commands import ClusterError
from .gpu import Gpus
from .network import NODE_NAME
from .progress import say


def parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    top = argparse.ArgumentParser(
        prog="python3 -m dev.cluster",
        description="A real one-node Kubernetes cluster on this machine, from source.",
        epilog=f"State lies in {paths.STATE}, built programs in {paths.cache()}. Runs as root.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, words: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=words, description=words[0].upper() + words[1:])

    up = command("up", "start the cluster, or what of it does not run; builds what is missing")
    up.add_argument("--runtime-only", action="store_true", help="just containerd and BuildKit")
    up.add_argument("--take-over", action="store_true", help="end another checkout's cluster")
    down = command("down", "end the cluster; keeps images and the build cache")
    down.add_argument("--purge", action="store_true", help=f"remove {paths.STATE} wholly")
    command("status", "say how each component is; exit 0 only when all serve")
    command("build", "install packages and build the programs, start nothing")
    command("prune", "remove images that lost their name to a newer build")
    command("kubeconfig", "print the path of the admin's kubeconfig")
    command("env", "print shell lines that put kubectl, helm, buildctl and ctr at hand")

    give = command("gpu", "give a node GPUs (resource and labels) it does not have")
    give.add_argument("--node", default=NODE_NAME, help="default: %(default)s")
    give.add_argument("--count", type=_count, required=True, help="0 takes them away")
    _add_gpu_flags(give)

    fake = command("fake-nodes", "have exactly N fake nodes, whose pods run at once; 0 removes all")
    fake.add_argument("n", type=_count, metavar="N")
    fake.add_argument("--gpus", type=_count, default=0, help="on each; default: none")
    _add_gpu_flags(fake)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    chosen = parser().parse_args(arguments)
    try:
        return _run(chosen)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130


def _run(chosen: argparse.Namespace) -> int:
    match chosen.command:
        case "up":
            lifecycle.up(take_over=chosen.take_over, runtime_only=chosen.runtime_only)
            say('Put kubectl and the rest at hand: eval "$(python3 -m dev.cluster env)"')
        case "down":
            lifecycle.down(purge=chosen.purge)
        case "status":
            return 0 if lifecycle.status() else 1
        case "build":
            lifecycle.build()
        case "prune":
            lifecycle.prune()
        case "kubeconfig":
            say(str(paths.KUBECONFIG))
        case "env":
            say(environment())
        case "gpu":
            gpu.give(chosen.node, Gpus(chosen.count, chosen.product, chosen.memory))
        case "fake-nodes":
            fake_nodes.scale(chosen.n, Gpus(chosen.gpus, chosen.product, chosen.memory))
    return 0


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
