"""What a streamed token takes of the server's event loop: from the engine's event to the socket.

    python -m bench.streaming --streams 128 --tokens 256 --rate 7000

The server is the real application under uvicorn, in a process of its own; its engine has no model
but gives every stream one token a step, so many steps a second that all streams together get
`--rate` tokens (0: as fast as the loop takes them). Counted is the processor time of the loop's
thread from the first step, once all streams are open, until the last answer has ended. Prints
microseconds a token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
WORDS = (" the", " river", " was", " 12", ",", " é", '"', " slowly")


class StepEngine:
    """Makes one event a step for each of its streams once there are as many as expected."""

    def __init__(self, streams: int, rate: float) -> None:
        self.streams, self.rate = streams, rate
        self.open: list[Any] = []
        self.used: list[float] = []
        self.over = threading.Event()
        self._ended = 0

    def add(self, stream: Any, tokens: int) -> None:  # noqa: ANN401 - of two versions
        """Take a stream; the last one starts the steps."""
        self.open.append(stream)
        if len(self.open) == self.streams:
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._run, args=(loop, tokens), daemon=True).start()

    def end(self) -> None:
        """Note the end of an answer; called in the loop's thread."""
        self._ended += 1
        if self._ended == self.streams:
            self.used.append(time.thread_time())
            self.over.set()

    def _run(self, loop: asyncio.AbstractEventLoop, tokens: int) -> None:
        from llm_inference.engine.interface import FinishReason, TokenEvent  # noqa: PLC0415

        time.sleep(0.5)
        taken = threading.Event()

        def put(events: Sequence[Any]) -> None:
            self.used.append(time.thread_time())
            for stream, event in zip(self.open, events, strict=True):
                stream.put(event)
            # In the loop's next turn, after the readers.
            loop.call_soon(lambda: loop.call_soon(taken.set))

        began = due = time.perf_counter()
        for step in range(1, tokens + 1):
            reason = FinishReason.LENGTH if step == tokens else None
            text = WORDS[step % len(WORDS)]
            event = TokenEvent(index=0, text=text, tokens=step, finish_reason=reason)
            taken.clear()
            loop.call_soon_threadsafe(put, [event] * self.streams)
            if self.rate:
                due += self.streams / self.rate
                time.sleep(max(0.0, due - time.perf_counter()))
            else:
                taken.wait()
        self.over.wait()
        seconds = time.perf_counter() - began
        count = self.streams * tokens
        cpu = (self.used[-1] - self.used[0]) / count * 1e6
        figures = {"us_per_token": round(cpu, 1), "tokens_per_second": round(count / seconds)}
        print(json.dumps(figures), flush=True)


def serve(streams: int, rate: float) -> None:
    """Be the server; prints its port, then the figures."""
    import socket  # noqa: PLC0415 - only here

    import uvicorn  # noqa: PLC0415

    from llm_inference.app import create_app  # noqa: PLC0415
    from llm_inference.engine.interface import (  # noqa: PLC0415
        Capacity,
        GenerationEngine,
        GenerationRequest,
        Load,
    )
    from llm_inference.engine.sequence import EventStream  # noqa: PLC0415
    from llm_inference.health import Health, Phase  # noqa: PLC0415
    from llm_inference.serving import Serving  # noqa: PLC0415
    from llm_inference.settings import Settings  # noqa: PLC0415

    steps = StepEngine(streams, rate)

    class Codec:
        chat_template = "{{ messages }}"
        has_chat_template = True

        def encode_chat(self, *_: object, **__: object) -> list[int]:
            return [1, 2, 3]

    class Counted(EventStream):
        def cancel(self) -> None:
            super().cancel()
            steps.end()

    class Engine(GenerationEngine):
        capacity = Capacity(
            max_length=1 << 20, max_concurrency=streams, max_queue=8, vocabulary=1000
        )
        codec: Any = Codec()
        alive = True  # type: ignore[assignment]  # as the abstract property
        stalled_seconds = 0.0  # type: ignore[assignment]

        def load(self) -> Load:
            return Load(running=0, waiting=0, cache_usage=0.0)

        def compile(self, grammar: object) -> Any:  # noqa: ANN401
            raise NotImplementedError

        def submit(self, request: GenerationRequest) -> Any:  # noqa: ANN401
            stream = Counted(1, lambda: None)
            steps.add(stream, request.max_tokens)
            return stream

        async def close(self) -> None: ...

    async def run() -> None:
        serving = Serving(
            Settings(served_name=MODEL, log_level="error"), Health(), load=lambda _: Engine()
        )
        serving.health.enter(Phase.LOADING)
        serving.health.enter(Phase.WARMING)
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(
            create_app(serving), log_config=None, access_log=False, server_header=False
        )
        await uvicorn.Server(config).serve(sockets=[listener])

    import uvloop  # noqa: PLC0415

    uvloop.run(run())


async def read(port: int, body: bytes) -> None:
    """Ask for one answer and take it, without looking at it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    end = b""
    while piece := await reader.read(1 << 16):
        end = (end + piece)[-64:]
    writer.close()
    if b"[DONE]" not in end:
        raise RuntimeError(f"an answer did not end well: {end!r}")


async def load(port: int, streams: int, tokens: int) -> None:
    """Read all streams at once."""
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": tokens,
            "stream": True,
        }
    ).encode()
    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(read(port, body))


def main() -> None:
    """Start the server, load it, and print what it says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rate", type=float, default=7000, help="tokens a second, 0 for all")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.streams, asked.rate)
        return
    command = [sys.executable, "-m", "bench.streaming", "--serve"]
    command += ["--streams", str(asked.streams), "--rate", str(asked.rate)]
    paths = filter(None, [os.environ.get("PYTHONPATH"), "inference", "."])
    environment = {**os.environ, "PYTHONPATH": ":".join(paths)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as server:
        if server.stdout is None:
            raise RuntimeError("the server has no output")
        port = int(server.stdout.readline())
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                asyncio.run(load(port, asked.streams, asked.tokens))
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        print(server.stdout.readline().strip(), f"load {os.getloadavg()[0]:.1f}")
        server.terminate()


if __name__ == "__main__":
    main()
