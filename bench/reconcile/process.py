"""The operator as a process of this machine, and what processes cost, from /proc.

Knows how it is started, ended by its pid, and measured from outside. Does not know what it does.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.cluster import processes

ROOT = Path(__file__).resolve().parents[2]

_TICKS = os.sysconf("SC_CLK_TCK")
_START_WITHIN = 120
_STOP_WITHIN = 60


@dataclass(frozen=True)
class Operator:
    """A running operator."""

    pid: int
    counts_file: Path
    log: Path

    @property
    def cpu(self) -> float:
        """CPU seconds used so far."""
        return cpu_seconds(self.pid)

    @property
    def peak_rss(self) -> float:
        """Most resident memory so far, in MB (10^6 bytes)."""
        return _status(self.pid, "VmHWM")

    @property
    def rss(self) -> float:
        """Resident memory now, in MB (10^6 bytes)."""
        return _status(self.pid, "VmRSS")

    async def requests(self) -> dict[str, int]:
        """API requests sent so far, by verb and resource."""
        self.counts_file.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        async with asyncio.timeout(10):
            while not self.counts_file.exists():  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.05)
        counts: dict[str, int] = json.loads(self.counts_file.read_text())
        return counts


@contextlib.asynccontextmanager
async def running(
    namespace: str, *, kubeconfig: Mapping[str, Any], source: Path, folder: Path
) -> AsyncIterator[Operator]:
    """Start the operator for one namespace; end it with the block.

    Args:
        namespace: The namespace it serves.
        kubeconfig: Whom it acts as.
        source: Folder that holds the package llm_operator.
        folder: Where its log and other files go.

    Raises:
        RuntimeError: it ended by itself; the message has its last lines.
    """
    credentials, counts, log = folder / "kubeconfig", folder / "counts.json", folder / "log"
    credentials.write_text(json.dumps(kubeconfig))
    port = _free_port()
    variables = {
        "PYTHONPATH": os.pathsep.join([str(source), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "KUBECONFIG": str(credentials),
        "LLM_OPERATOR_WATCH_NAMESPACES": namespace,
        "LLM_OPERATOR_RUNTIME_IMAGE_CPU": "localhost/llm-inference:bench",
        "LLM_OPERATOR_HEALTH_PORT": str(port),
        "LLM_OPERATOR_STANDALONE": "true",
    }
    process = _start([sys.executable, "-m", "bench.reconcile.counted", str(counts)], variables, log)
    try:
        await _wait_until_up(process, port, log)
        yield Operator(process.pid, counts, log)
        if process.poll() is not None:
            raise RuntimeError(f"the operator ended: {_last_words(log)}")
    finally:
        _stop(process)


def cluster_cpu() -> dict[str, float]:
    """CPU seconds used so far by each part of the development cluster."""
    return {name: cpu_seconds(pid) for name, pid in processes.all_running().items()}


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process used so far, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _status(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_WITHIN
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the operator did not start: {_last_words(log)}") from None
            await asyncio.sleep(0.1)
        else:
            writer.close()
            await asyncio.sleep(2)  # until the watches are open
            return


def _start(
    command: Sequence[str], variables: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _last_words(log: Path) -> str:
    return log.read_text()[-2000:]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=_STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
