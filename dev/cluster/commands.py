"""Run a program to its end and get what it printed, or an error that says what it said."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class ClusterError(Exception):
    """What went wrong, in a sentence for the person at the terminal."""


def run(
    argv: Sequence[str | Path],
    *,
    text: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 120,
) -> str:
    """Run a program and return its standard output.

    Args:
        argv: the program and its arguments.
        text: its standard input; empty when None.
        env: its whole environment; this process's own when None.
        cwd: its working folder.
        timeout: seconds it may take.

    Raises:
        ClusterError: it is missing, failed or took too long; holds its last words.
    """
    name = Path(argv[0]).name
    try:
        done = subprocess.run(
            argv,
            input=text or "",
            env=env,
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise ClusterError(f"{name} is not installed: run `python3 -m dev.cluster build`") from None
    except subprocess.TimeoutExpired:
        command = " ".join(map(str, argv))
        raise ClusterError(f"`{command}` did not end within {timeout:.0f} s") from None
    if done.returncode != 0:
        command = " ".join([name, *map(str, argv[1:])])
        words = (done.stderr or done.stdout).strip()
        raise ClusterError(f"`{command}` failed with code {done.returncode}: {words}")
    return done.stdout


def succeeds(argv: Sequence[str | Path], *, timeout: float = 120) -> bool:
    """Whether a program runs and exits 0."""
    try:
        run(argv, timeout=timeout)
    except ClusterError:
        return False
    return True
