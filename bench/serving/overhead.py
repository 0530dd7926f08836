"""What the load generator itself takes: measured against a server that does nothing but send.

    python -m bench.serving.overhead --streams 128 --tokens 256 --rate 7000

The server is a process of its own that answers every request with the same chunks as fast as they
are taken, or with `--rate` so many a second. Prints the tokens a second that came, and the
processor time of the generator for each; a generator that needs much of a core at the rate of a
real server would be part of what it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.serving import ROOT
from bench.serving.load import Work, closed_loop
from bench.serving.stream import DONE, Target

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)
_MODELS = b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"data":[{"id":"none"}]}'


def chunk(payload: bytes) -> bytes:
    """An event as one chunk of a body."""
    event = b"data: " + payload + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def token() -> bytes:
    """A chunk as large as those that servers send for a token."""
    body = {
        "id": f"chatcmpl-{'0' * 32}",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "choices": [{"index": 0, "delta": {"content": " river"}, "finish_reason": None}],
    }
    return chunk(json.dumps(body, separators=(",", ":")).encode())


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause: float) -> None:
    """Take one request and send as many tokens as it asks for, one every `pause` seconds.

    Whatever is got, not posted, is the list of models.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    if head.startswith(b"GET"):
        writer.write(_MODELS)
        writer.close()
        return
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    wanted = json.loads(await reader.readexactly(length))["max_tokens"]
    writer.write(_HEAD)
    piece, due = token(), time.perf_counter()
    for _ in range(wanted):
        writer.write(piece)
        due += pause
        await (asyncio.sleep(due - time.perf_counter()) if pause else writer.drain())
    writer.write(chunk(DONE) + b"0\r\n\r\n")
    await writer.drain()
    writer.close()


async def serve(pause: float) -> None:
    """Serve on a free port of loopback, which is printed, until the process is ended."""
    listening = await asyncio.start_server(
        lambda reader, writer: answer(reader, writer, pause), "127.0.0.1", 0, backlog=1024
    )
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


@contextmanager
def server(pause: float) -> Iterator[Target]:
    """Such a server as a process, until the block ends."""
    command = [sys.executable, "-m", "bench.serving.overhead", "--serve", str(pause)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - it was asked for
            yield Target(f"http://127.0.0.1:{int(process.stdout.readline())}", "none")
        finally:
            process.kill()


async def measure(streams: int, tokens: int, rate: float) -> dict[str, float]:
    """Two answers a stream, and what they took of this process."""
    with server(streams / rate if rate else 0) as target:
        before = time.process_time()
        run = await closed_loop(target, Work(requests=2 * streams, tokens=tokens), streams)
        spent = time.process_time() - before
    summary = run.summary()
    return {
        "streams": streams,
        "tokens": summary.tokens,
        "failures": sum(summary.failures.values()),
        "tokens_per_second": round(summary.throughput),
        "processor_share": round(spent / summary.seconds, 3),
        "microseconds_per_token": round(spent / summary.tokens * 1e6, 1),
    }


def main() -> None:
    """Measure and print, or be the server."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving.overhead", description=__doc__)
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rate", type=float, default=0, help="tokens a second (unbounded)")
    parser.add_argument("--serve", type=float, metavar="PAUSE", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve is not None:
        asyncio.run(serve(chosen.serve))
        return
    figures = asyncio.run(measure(chosen.streams, chosen.tokens, chosen.rate))
    print(json.dumps({**figures, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
