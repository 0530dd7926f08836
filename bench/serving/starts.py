"""Cold starts: from the start of a process to the first token of the first request.

The files are in the page cache, as on a node that has served the model before. Next to them a bare
`import torch` is timed, which all but a server that does without has to wait for. Knows how a start
is measured, not which server it is.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.serving.prompts import prompt
from bench.serving.servers import (
    START_WITHIN,
    Running,
    Server,
    ServerError,
    get,
    running,
    target,
    wait_until_ready,
)
from bench.serving.stream import ask

_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Start:
    """One start, in seconds from the start of the process.

    Attributes:
        ready: Until the server said that it is ready.
        first_token: Until a request, sent then, had its first token.
        phases: What the server itself says its phases took, without a fixed set of them.
        timeline: What it says it had reached when.
    """

    ready: float
    first_token: float
    phases: dict[str, float] = field(default_factory=dict)
    timeline: dict[str, float] = field(default_factory=dict)


def start(server: Server) -> Start:
    """Start a server, ask it once, end it.

    Raises:
        ServerError: It did not come to answer.
    """
    with running(server) as at:
        return first_answer(server, at)


def first_answer(server: Server, at: Running) -> Start:
    """Wait until a server that was just started is ready, and ask it.

    A server that says it is ready and refuses is asked again: what counts is the first answer.

    Raises:
        ServerError: It did not come to answer.
    """
    ready = wait_until_ready(server, at)
    whom = target(server, at)
    while True:
        sample = asyncio.run(ask(whom, prompt(0), 2, within=START_WITHIN))
        if sample.failure is None:
            break
        at.fail_if_ended(server.name)
        if time.perf_counter() > at.began + START_WITHIN:
            raise ServerError(f"{server.name} does not answer: {sample.failure}")
        time.sleep(0.1)
    told: dict[str, Any] = json.loads(get(at.url, server.phases)[1]) if server.phases else {}
    return Start(
        ready,
        sample.pieces[0] - at.began,
        told.get("phases", {}),
        told.get("timeline", {}),
    )


def import_torch() -> float:
    """Seconds that `python -c "import torch"` takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def read_once(directory: Path) -> None:
    """Bring the files of a directory into the page cache."""
    for file in directory.rglob("*"):
        if file.is_file():
            with file.open("rb", buffering=0) as data:
                while data.read(_MEBIBYTE):
                    pass
