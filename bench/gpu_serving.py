"""The server on this machine's CUDA device, over HTTP: start, first token, tokens a second.

    python3 -m bench.gpu_model --tokenizer TOKENIZER MODEL
    PYTHONPATH=inference python3 -m bench.gpu_serving MODEL [--streams 1 16 64 128]

Starts `python -m llm_inference` on a model directory and asks it for greedy streams. Prints
tables in Markdown, what processor time the server's threads took, and which CUDA libraries it has
mapped. Knows the server from outside only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.serving.load import Work, closed_loop
from bench.serving.stream import Target, ask

MODEL = "bench/model"
LENGTH = 1024
PROMPT_WORDS = 455  # about 512 tokens with the chat template around them
START_WITHIN = 180
LIBRARIES = ("cuda", "cu", "nv", "nccl", "torch", "c10", "triton")


@contextmanager
def serving(model: Path, log: Path) -> Iterator[tuple[int, str, float]]:
    """A server of `model`: its process id, its address, and when it was started."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {
        "LLM_MODEL_DIR": str(model),
        "LLM_MODEL_ID": MODEL,
        "LLM_HOST": "127.0.0.1",
        "LLM_PORT": str(port),
        "LLM_MAX_CONCURRENCY": "128",
        "LLM_MAX_QUEUE": "256",
        "LLM_MAX_LENGTH": str(LENGTH),
    }
    began = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "llm_inference"],
            env={**os.environ, **variables},
            stdout=out,
            stderr=out,
        )
        try:
            yield process.pid, f"http://127.0.0.1:{port}", began
        finally:
            process.terminate()
            process.wait()


def get(url: str) -> object:
    """The JSON of a page, None if it is not there or not ready."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - loopback
            return json.loads(answer.read() or b"null") or {}
    except (OSError, urllib.error.URLError, ValueError):
        return None


def wait_until_ready(url: str, process: int) -> None:
    """Return when requests are served.

    Raises:
        TimeoutError: that takes too long, or the server has ended.
    """
    deadline = time.perf_counter() + START_WITHIN
    while get(f"{url}/readyz") is None:
        if os.waitpid(process, os.WNOHANG)[0]:
            raise TimeoutError("the server ended: see its log")
        if time.perf_counter() > deadline:
            raise TimeoutError(f"not ready within {START_WITHIN} s")
        time.sleep(0.02)


def processor_seconds(process: int) -> dict[str, float]:
    """Processor time of each thread so far, by name and number."""
    ticks = os.sysconf("SC_CLK_TCK")
    times = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        head, _, rest = (task / "stat").read_text(encoding="utf-8").rpartition(")")
        fields = rest.split()
        times[f"{head.partition('(')[2]} {task.name}"] = (int(fields[11]) + int(fields[12])) / ticks
    return times


def libraries(process: int) -> list[tuple[str, int]]:
    """Mapped files whose names say CUDA or torch, with the bytes of each file."""
    lines = Path(f"/proc/{process}/maps").read_text(encoding="utf-8").splitlines()
    files = {line.split()[-1] for line in lines if line.count("/") and ".so" in line}
    return sorted(
        (file, Path(file).stat().st_size)
        for file in files
        if Path(file).name.removeprefix("lib").startswith(LIBRARIES) and Path(file).is_file()
    )


async def measure(url: str, process: int, streams: list[int], tokens: int, rounds: int) -> None:
    """Print what the loads saw."""
    target = Target(url, MODEL, extra={"ignore_eos": True})
    work = Work(requests=12, tokens=8, words=PROMPT_WORDS, warm_up=2)
    prompt = (await closed_loop(target, work, 1)).summary().document()
    print(
        f"\n{prompt['prompt_tokens']:.0f} tokens in, 1 stream: TTFT {milliseconds(prompt['ttft'])}"
    )
    print("\n| streams | tokens/s | TTFT ms p50 / p99 | inter-token ms p50 / p99 | failed |")
    print("|---|---|---|---|---|")
    for count in streams:
        work = Work(
            requests=max(4, rounds * count), tokens=tokens, words=64, warm_up=count, seed=count
        )
        before = processor_seconds(process)
        run = await closed_loop(target, work, count)
        after = processor_seconds(process)
        seen = run.summary().document()
        row = [
            *(count, f"{seen['throughput']:,.0f}", milliseconds(seen["ttft"])),
            *(milliseconds(seen["itl"]), seen["failures"] or 0),
        ]
        print("|", " | ".join(map(str, row)), "|", flush=True)
        used = Counter({name: after[name] - before.get(name, 0) for name in after})
        total = seen["tokens"] + count * tokens
        busy = ", ".join(
            f"{name} {1e6 * seconds / total:.0f}" for name, seconds in used.most_common(4)
        )
        print(f"  microseconds of processor a token: {busy}", file=sys.stderr, flush=True)


def milliseconds(percentiles: dict[str, float]) -> str:
    """Median and 99th percentile."""
    return f"{1000 * percentiles['p50']:.1f} / {1000 * percentiles['p99']:.1f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 128])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4, help="requests of each stream")
    parser.add_argument("--log", type=Path, default=Path("/tmp/gpu-serving.log"))  # noqa: S108
    parser.add_argument("--maps", type=Path, help="where the mapped libraries are written")
    chosen = parser.parse_args()
    with serving(chosen.model, chosen.log) as (process, url, began):
        wait_until_ready(url, process)
        ready = time.perf_counter() - began
        first = asyncio.run(ask(Target(url, MODEL), "Hello.", 1))
        print(f"process start to ready {ready:.2f} s, to first token {first.ended - began:.2f} s")
        print("phases:", get(f"{url}/startupz"))
        asyncio.run(measure(url, process, chosen.streams, chosen.tokens, chosen.rounds))
        mapped = libraries(process)
        text = "\n".join(f"{size / 1e6:9.1f} MB {file}" for file, size in mapped)
        if chosen.maps:
            chosen.maps.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
