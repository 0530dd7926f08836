"""What servers are asked, beside each other: the loads of a round, and their order.

One server runs at a time, since two would share the machine. Every round starts with another one,
so that a machine whose speed drifts treats them alike; prompts are the same for all servers and
new in every round. Gives a document of plain values that the tables and the plot are made from.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.serving import memory, starts
from bench.serving.figures import Objective
from bench.serving.load import Work, closed_loop
from bench.serving.prompts import SHORT
from bench.serving.servers import Server, ServerError, running, target, wait_until_ready

Document = dict[str, Any]


TEMPLATE_TOKENS = 42
"""Tokens that the task and SmolLM2's template add to the words of a prompt."""


@dataclass(frozen=True)
class Load:
    """One load of a round.

    Attributes:
        streams: How many requests run at once.
        requests: How many count.
        tokens: Tokens of each answer.
        words: Words by chance in each prompt.
        warm_up: Requests before, which do not count.
    """

    streams: int
    requests: int
    tokens: int
    words: int = SHORT
    warm_up: int = 1


def loads(streams: int = 16, tokens: int = 64) -> dict[str, Load]:
    """One stream, `streams` streams, each of answers of so many tokens, and a long prompt."""
    return {
        "one": Load(streams=1, requests=3, tokens=tokens),
        "many": Load(streams=streams, requests=2 * streams, tokens=tokens, warm_up=streams),
        "prompt": Load(streams=1, requests=5, tokens=4, words=512 - TEMPLATE_TOKENS),
    }


def cache_tokens(sent: Mapping[str, Load]) -> int:
    """Tokens that one of these loads has in a cache at once, at most."""
    return max(
        load.streams * (load.words + TEMPLATE_TOKENS + load.tokens) for load in sent.values()
    )


def measure(
    servers: Sequence[Server],
    *,
    sent: Mapping[str, Load],
    objective: Objective,
    rounds: int,
    cold_starts: int,
    extra: Mapping[str, Any] | None = None,
    say: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Document:
    """All figures of these servers: starts first, then the loads, each in turn.

    What a server does not do is told under `errors`; the others are measured all the same.

    Args:
        servers: Who is measured.
        sent: The loads of a round, by name.
        objective: What counts as a good request.
        rounds: How often all loads are sent to each server.
        cold_starts: How often each server is started for nothing but its first token.
        extra: Fields of every body, on top of the usual ones.
        say: Told what goes on, and what went wrong.
    """
    documents: Document = {
        server.name: {"starts": [], "loads": {}, "memory": [], "errors": []} for server in servers
    }
    imports: list[float] = []

    def attempt(server: Server, what: str, measured: Callable[[Server, Document], None]) -> None:
        began = time.monotonic()
        try:
            measured(server, documents[server.name])
        except ServerError as error:
            documents[server.name]["errors"].append(str(error))
            what += f": {error}"
        say(f"{server.name}: {what} ({time.monotonic() - began:.0f} s)")

    for number in range(cold_starts):
        imports.append(starts.import_torch())
        for server in _turned(servers, number):
            if server.command:
                attempt(server, f"start {number + 1}", _start)
    for number in range(rounds):
        for server in _turned(servers, number):
            turn = functools.partial(
                _load, sent=sent, objective=objective, seed=number, extra=extra or {}
            )
            attempt(server, f"round {number + 1}", turn)
    return {"import_torch": imports, "servers": documents}


def _turned(servers: Sequence[Server], number: int) -> Sequence[Server]:
    at = number % len(servers)
    return [*servers[at:], *servers[:at]]


def _start(server: Server, document: Document) -> None:
    document["starts"].append(dataclasses.asdict(starts.start(server)))


def _load(
    server: Server,
    document: Document,
    *,
    sent: Mapping[str, Load],
    objective: Objective,
    seed: int,
    extra: Mapping[str, Any],
) -> None:
    """One round: all loads, and then the memory that they left the server with."""
    with running(server) as at:
        wait_until_ready(server, at)
        whom = dataclasses.replace(target(server, at), extra=extra)
        for name, load in sent.items():
            work = Work(
                requests=load.requests,
                tokens=load.tokens,
                words=load.words,
                warm_up=load.warm_up,
                seed=seed,
            )
            run = asyncio.run(closed_loop(whom, work, load.streams))
            figures = run.summary(objective).document()
            document["loads"].setdefault(name, []).append(figures)
            at.fail_if_ended(server.name)
        if at.process is not None:
            document["memory"].append(dataclasses.asdict(memory.of_tree(at.process.pid)))
