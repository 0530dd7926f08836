"""Clients of every sort that ask without a pause, and what became of each request.

Knows how clients of an OpenAI API behave: those that connect anew for each request, those that keep
their connection, those that read a long answer as it comes. Knows nothing of what happens to the
pods meanwhile.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.harness import MODEL, chat, eventually

PAUSE = 0.1
STREAMED_TOKENS = 48
TIMEOUT = 120.0

Client = Callable[[httpx.Client], None]


@dataclass
class Traffic:
    """What became of the requests so far.

    Attributes:
        answered: Requests that were answered whole, by the sort of their client.
        failures: What went wrong: the sort of the client, the second, the error.
        open_streams: Answers that are being read now.
    """

    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    open_streams: int = 0
    began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def more(self, requests: int = 2, *, within: float = 90) -> None:
        """Wait until every sort of client has got this many more answers, or one a failure."""
        before = Counter(self.answered)

        def enough() -> bool:
            fewest = min(self.answered[sort] - before[sort] for sort in SORTS)
            return bool(self.failures) or fewest >= requests

        eventually(enough, within=within, every=0.1)

    def streaming_now(self) -> None:
        """Wait for an answer that has only begun."""
        eventually(lambda: self.open_streams, within=60, every=0.02)

    def note(self, sort: str, error: str | None) -> None:
        """A request is over; `error` says what went wrong, if anything did."""
        with self._lock:
            if error is None:
                self.answered[sort] += 1
            else:
                self.failures.append(f"{sort} after {time.monotonic() - self.began:.1f} s: {error}")

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """An answer is being read."""
        with self._lock:
            self.open_streams += 1
        try:
            yield
        finally:
            with self._lock:
                self.open_streams -= 1


class BrokenStreamError(Exception):
    """A stream that did not end as the API says."""


def _body(question: str, tokens: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, "max_tokens": tokens, "temperature": 0, **more}


def _ask(client: httpx.Client, url: str) -> None:
    answer = client.post(f"{url}/v1/chat/completions", json=_body("Say yes.", 4))
    answer.raise_for_status()
    assert answer.json()["choices"][0]["message"]["content"]


def _stream(client: httpx.Client, url: str) -> None:
    """Read a long answer; a stream that breaks off or ends in an error is no answer."""
    body = _body("Tell me a long story.", STREAMED_TOKENS, stream=True)
    with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    if not events or events[-1] != "[DONE]":
        raise BrokenStreamError(f"ends with {events[-1:]}")
    chunks = [json.loads(event) for event in events[:-1]]
    if broken := [chunk for chunk in chunks if "error" in chunk]:
        raise BrokenStreamError(f"holds {broken}")
    finished = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1]
    if finished not in {"length", "stop"}:
        raise BrokenStreamError(f"finished with {finished}")


SORTS = ("fresh", "kept", "stream")


def _serve(traffic: Traffic, over: threading.Event, sort: str, url: str) -> None:
    kept = httpx.Client(timeout=TIMEOUT)
    while not over.is_set():
        client = kept if sort == "kept" else httpx.Client(timeout=TIMEOUT)
        try:
            if sort == "stream":
                with traffic.streaming():
                    _stream(client, url)
            else:
                _ask(client, url)
        except (httpx.HTTPError, BrokenStreamError, AssertionError, ValueError) as error:
            traffic.note(sort, repr(error))
        else:
            traffic.note(sort, None)
        if client is not kept:
            client.close()
        over.wait(PAUSE)
    kept.close()


def first_answer(url: str, question: str = "Say yes.") -> str:
    """Ask a model that has just become ready: a node's proxy learns of a pod a moment later."""

    def answer() -> str:
        try:
            return chat(url, question)
        except httpx.ConnectError as error:
            raise AssertionError(repr(error)) from error

    return eventually(answer, within=20)


@contextmanager
def steady(url: str, *, each: int = 1) -> Iterator[Traffic]:
    """Have `each` clients of every sort ask until the block ends, and every one answered.

    The block begins once every sort of client has got its first answers.
    """
    first_answer(url)
    traffic, over = Traffic(), threading.Event()
    threads = [
        threading.Thread(target=_serve, args=(traffic, over, sort, url), daemon=True)
        for sort in SORTS
        for _ in range(each)
    ]
    for thread in threads:
        thread.start()
    try:
        traffic.more()
        yield traffic
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout=TIMEOUT)
        print(f"answered: {dict(traffic.answered)}, failed: {len(traffic.failures)}")
