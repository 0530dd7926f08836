"""What kstatus says of every state that an object passes through, however short.

Knows how a watch is recorded. Does not know which verdicts are right.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.cluster import checks
from tests.e2e.harness import KIND, Kubectl


@contextmanager
def watched(kubectl: Kubectl, name: str, record: Path) -> Iterator[Callable[[], list[str]]]:
    """Record every state of one LLMDeployment.

    Args:
        kubectl: in its namespace.
        name: Its name.
        record: Where the states are written.

    Yields:
        What gives kstatus' verdicts so far, without repetitions.
    """
    command = [
        kubectl.binary, f"--kubeconfig={kubectl.kubeconfig}", "-n", kubectl.namespace,
        "get", KIND, f"--field-selector=metadata.name={name}", "--watch", "-o", "json",
    ]  # fmt: skip
    with record.open("wb") as out:
        process = subprocess.Popen(command, stdout=out)
    try:
        yield lambda: _verdicts(record.read_text())
    finally:
        process.terminate()
        process.wait(timeout=10)


def _verdicts(states: str) -> list[str]:
    """Of objects as JSON, one after the other; one that is half there does not count."""
    seen: list[str] = []
    decoder = json.JSONDecoder()
    while states := states.lstrip():
        try:
            resource, end = decoder.raw_decode(states)
        except ValueError:
            break
        states = states[end:]
        verdict = checks.status(resource)["status"]
        if seen[-1:] != [verdict]:
            seen.append(verdict)
    return seen
