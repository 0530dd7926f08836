"""Start-up and throughput over HTTP, side by side with `transformers serve`, on this machine.

    make bench

Both serve the same model directory in the same Python environment and are measured in turn, so
that a machine whose speed drifts treats them alike. Knows how each is started and spoken to;
knows nothing of how they work. Prints a table in Markdown with medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from dev import environment
from dev.stand_ins.cache import models

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DIRECTORY = models() / MODEL
LOCK = environment.LOCKS / "bench.txt"
STREAMS = (1, 16)
TOKENS = 64
START_WITHIN = 180
PROMPT = "Write a long story about a lighthouse keeper and the sea."


@dataclass(frozen=True)
class Server:
    """One way to serve the model.

    Attributes:
        name: How the table calls it.
        command: What starts it; `{port}` is filled in.
        model: What requests call the model.
        variables: Variables on top of this process's own.
    """

    name: str
    command: Sequence[str]
    model: str
    variables: dict[str, str] = field(default_factory=dict)


SERVERS = (
    Server(
        name="llm-inference",
        command=(sys.executable, "-m", "llm_inference"),
        model=MODEL,
        variables={
            "LLM_MODEL_DIR": str(DIRECTORY),
            "LLM_MODEL_ID": MODEL,
            "LLM_HOST": "127.0.0.1",
            "LLM_PORT": "{port}",
            "PYTHONPATH": "inference",
        },
    ),
    Server(
        name="transformers serve --continuous-batching",
        command=(
            *(str(Path(sys.executable).with_name("transformers")), "serve", str(DIRECTORY)),
            *("--continuous-batching", "--cb-num-blocks", "16", "--device", "cpu"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        model=str(DIRECTORY),
        variables={"HF_HUB_OFFLINE": "1"},
    ),
)


@dataclass
class Figures:
    """What was measured of one server, one value a round.

    Attributes:
        first_answer: Seconds from process start to the first token of the first request.
        rates: Tokens a second of all streams together, by number of streams.
    """

    first_answer: list[float] = field(default_factory=list)
    rates: dict[int, list[float]] = field(default_factory=dict)


@contextmanager
def running(server: Server) -> Iterator[str]:
    """Start a server on a free loopback port; give its address, end it by its pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {k: v.replace("{port}", port) for k, v in server.variables.items()}
    process = subprocess.Popen(
        [part.replace("{port}", port) for part in server.command],
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def stream(client: httpx.AsyncClient, url: str, model: str, tokens: int) -> list[float]:
    """Times at which the pieces of one streamed answer came.

    Raises:
        httpx.HTTPError: No answer, or one that is no success.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        return [
            time.monotonic()
            async for line in answer.aiter_lines()
            if line.startswith("data: {") and _has_text(json.loads(line[6:]))
        ]


def _has_text(chunk: dict[str, list[dict[str, dict[str, str]]]]) -> bool:
    return any(choice.get("delta", {}).get("content") for choice in chunk.get("choices", []))


async def first_answer(server: Server, url: str, began: float) -> float:
    """Seconds from `began` until a first request, tried again until it works, has its token."""
    async with httpx.AsyncClient(timeout=START_WITHIN) as client:
        while time.monotonic() < began + START_WITHIN:
            try:
                times = await stream(client, url, server.model, 1)
            except httpx.HTTPError:
                await asyncio.sleep(0.1)
            else:
                return times[0] - began
    raise TimeoutError(f"{server.name} did not answer within {START_WITHIN} s")


async def rate(server: Server, url: str, streams: int) -> float:
    """Tokens a second of so many streams that start together, from first to last token."""
    async with httpx.AsyncClient(timeout=300) as client:
        asked = (stream(client, url, server.model, TOKENS) for _ in range(streams))
        times = sorted(moment for answer in await asyncio.gather(*asked) for moment in answer)
    return (len(times) - 1) / (times[-1] - times[0])


async def measure(server: Server, figures: Figures) -> None:
    """One round of one server."""
    began = time.monotonic()
    with running(server) as url:
        figures.first_answer.append(await first_answer(server, url, began))
        for streams in STREAMS:
            await rate(server, url, streams)  # the first of a kind is not counted
            figures.rates.setdefault(streams, []).append(await rate(server, url, streams))


def table(results: dict[str, Figures]) -> str:
    """The medians in Markdown."""
    head = ["server", "start to first token"] + [f"{n} at once, tok/s" for n in STREAMS]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name, figures in results.items():
        cells = [name, f"{statistics.median(figures.first_answer):.1f} s"]
        cells += [f"{statistics.median(figures.rates[n]):.0f}" for n in STREAMS]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.serving")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    results = {server.name: Figures() for server in SERVERS}
    environment.prepare()
    environment.install("--no-deps", "--require-hashes", f"--requirements={LOCK}")
    subprocess.run([sys.executable, "-m", "dev.stand_ins", "models"], check=True)
    for _ in range(rounds):
        for server in SERVERS:
            asyncio.run(measure(server, results[server.name]))
    print(f"{MODEL}, {os.cpu_count()} cores, {platform.machine()}, median of {rounds}\n")
    print(table(results))


if __name__ == "__main__":
    main()
