"""The command line: `python -m llm_image system|packages|cuda|layers`, run by the image build."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from llm_image import ImageError, cuda, layers, packages, system


def main() -> int:
    """Run one command; return its exit code. The last line on stderr says what is wrong."""
    chosen = _parser().parse_args()
    try:
        for line in chosen.run(chosen):
            sys.stdout.write(line + "\n")
    except ImageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llm_image", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("system", help="reduce Debian to what Python runs on")
    command.add_argument("root", type=Path, nargs="?", default=Path("/"))
    command.set_defaults(run=lambda chosen: system.reduce(chosen.root))

    command = commands.add_parser("packages", help="reduce Python packages to what runs")
    command.add_argument("recipe", choices=packages.RECIPES, help="the image they are for")
    command.add_argument("environment", type=Path, help="a virtual environment")
    command.set_defaults(run=_packages)

    command = commands.add_parser("cuda", help="leave out CUDA libraries that serving never calls")
    command.add_argument("environment", type=Path)
    command.set_defaults(run=lambda chosen: cuda.reduce(_site_packages(chosen.environment)))

    command = commands.add_parser("layers", help="divide an environment into folders, one a layer")
    command.add_argument("environment", type=Path)
    command.add_argument("target", type=Path)
    command.set_defaults(run=lambda chosen: layers.divide(chosen.environment, chosen.target))
    return parser


def _packages(chosen: argparse.Namespace) -> Iterator[str]:
    site = _site_packages(chosen.environment)
    return packages.reduce(site, packages.RECIPES[chosen.recipe])


def _site_packages(environment: Path) -> Path:
    found = sorted(environment.glob("lib/python3*/site-packages"))
    if len(found) != 1:
        raise ImageError(f"{environment} is no virtual environment")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
