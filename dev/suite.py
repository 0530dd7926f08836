"""The test stages: what each needs, in which order, and how long it took.

Knows what has to stand before a stage can run (environment, models, cluster, images).
Does not know what a stage tests: that is pytest's and the linters' business.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dev import environment
from dev.cluster import processes

ROOT = Path(__file__).parents[1]
PYTHON = str(ROOT / ".venv" / "bin" / "python")
HADOLINT = str(ROOT / ".venv" / "bin" / "hadolint")
DOCKERFILES = ("Dockerfile.inference", "Dockerfile.operator")


def module(name: str, *arguments: str) -> Callable[[], None]:
    """A step that runs one of the project's own commands."""
    return lambda: run("python3", "-m", name, *arguments)


def run(*command: str) -> None:
    """Run a command in the checkout.

    Raises:
        subprocess.CalledProcessError: It exited non-zero.
    """
    subprocess.run(command, cwd=ROOT, check=True)


@dataclass(frozen=True)
class Stage:
    """One part of the suite.

    Attributes:
        name: What ``make test-<name>`` calls it.
        needs: Steps that must have run before; each runs once per suite.
        commands: What decides pass or fail.
    """

    name: str
    needs: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]


NEEDS: dict[str, Callable[[], None]] = {
    "environment": environment.prepare,
    "models": module("dev.stand_ins", "models"),
    "tools": module("dev.cluster", "build"),
    "cluster": module("dev.cluster", "up"),
    "images": module("dev.images", "build"),
}


def pytest(*paths: str) -> tuple[str, ...]:
    """The command that runs some tests."""
    return (PYTHON, "-m", "pytest", "--durations=5", *paths)


# pytest's exit status when nothing was selected.
NO_TESTS = 5

IN_CLUSTER = ("tests/e2e", "--ignore=tests/e2e/faults")

STAGES = (
    Stage(
        "lint",
        ("environment",),
        (
            (PYTHON, "-m", "ruff", "check", "."),
            (PYTHON, "-m", "ruff", "format", "--check", "."),
            (PYTHON, "-m", "mypy"),
            (HADOLINT, *DOCKERFILES),
        ),
    ),
    Stage("unit", ("environment",), (pytest("tests/unit", "-n2", "--dist=loadfile"),)),
    Stage(
        "server",
        ("environment", "models"),
        (pytest("tests/server", "tests/stand_ins", "-n2", "--dist=loadfile"),),
    ),
    Stage("chart", ("environment", "tools"), (pytest("tests/chart"),)),
    Stage("images", ("environment", "cluster", "images"), (pytest("tests/images"),)),
    Stage("cluster", ("environment", "cluster"), (pytest("tests/cluster"),)),
    Stage(
        "e2e",
        ("environment", "cluster", "images"),
        (
            # Most tests wait for the cluster most of the time, each in a namespace of its own.
            pytest(*IN_CLUSTER, "-m", "not exclusive", "-n4", "--no-loadscope-reorder"),
            pytest(*IN_CLUSTER, "-m", "exclusive"),
        ),
    ),
    Stage("faults", ("environment", "cluster", "images"), (pytest("tests/e2e/faults"),)),
)


def main() -> int:
    """Run the stages named on the command line, or all.

    Returns:
        0 when every stage passed. A failed stage does not keep the next ones from running.
    """
    parser = argparse.ArgumentParser(prog="python3 -m dev.suite", description=__doc__)
    names = [stage.name for stage in STAGES]
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(names)}")
    own, extra = split_extra(sys.argv[1:])
    chosen = parser.parse_args(own).stages or names
    if unknown := set(chosen) - set(names):
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(names)}")

    was_up = processes.running("kubelet") is not None
    outcomes: dict[str, str] = {}
    ready: set[str] = set()
    try:
        for stage in (stage for stage in STAGES if stage.name in chosen):
            outcomes[stage.name] = attempt(stage, ready, extra)
    finally:
        # A cluster that was there before belongs to somebody: it stays.
        if "cluster" in ready and not was_up:
            run("python3", "-m", "dev.cluster", "down")
    print("\n" + "\n".join(f"{name:<8} {outcome}" for name, outcome in outcomes.items()))
    return 0 if all(outcome.startswith("passed") for outcome in outcomes.values()) else 1


def split_extra(arguments: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Split at ``--``: what follows goes to every command of the stages."""
    if "--" not in arguments:
        return arguments, ()
    border = arguments.index("--")
    return arguments[:border], tuple(arguments[border + 1 :])


def test(stage: Stage, extra: tuple[str, ...]) -> None:
    """Run a stage's commands; what ``extra`` selects need not be in each of them.

    Raises:
        subprocess.CalledProcessError: One failed, or none found a test.
    """
    empty: list[subprocess.CalledProcessError] = []
    for command in stage.commands:
        try:
            run(*command, *extra)
        except subprocess.CalledProcessError as error:
            if not extra or error.returncode != NO_TESTS:
                raise
            empty.append(error)
    if len(empty) == len(stage.commands):
        raise empty[-1]


def attempt(stage: Stage, ready: set[str], extra: tuple[str, ...]) -> str:
    """Prepare and run one stage; say how it ended and how long it took."""
    print(f"\n=== {stage.name} ===", flush=True)
    began = time.monotonic()
    try:
        for need in stage.needs:
            if need not in ready:
                NEEDS[need]()
                ready.add(need)
        prepared = time.monotonic()
        test(stage, extra)
    except subprocess.CalledProcessError as error:
        return f"FAILED  {' '.join(map(str, error.cmd))} exited {error.returncode}"
    took = time.monotonic() - prepared
    return f"passed  {took:6.0f} s, after {prepared - began:.0f} s of preparation"


if __name__ == "__main__":
    sys.exit(main())
