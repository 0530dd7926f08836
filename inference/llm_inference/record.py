"""What is known of one request to the API, for its log line, its trace and its metrics.

Knows the engine's interface and when something happened; knows no HTTP, no logging and no traces.
Holds numbers and names, never a word of a prompt or an answer.
"""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from llm_inference.engine.interface import GenerationRequest, TokenEvent, TokenStream


@dataclass(kw_only=True)
class Record:
    """One request, from its headers to the end of its answer.

    Attributes:
        request_id: the client's own, or one that was made for it.
        route: the path if it is one of the API's, else "other".
        client: who asks: a digest of the API key; empty where no keys are asked for.
        traceparent, tracestate: headers of the trace it belongs to, empty without one.
        started: seconds, monotonic, at which its headers had come.
        started_ns: the same in nanoseconds since 1970.
        status: HTTP status of the answer, 499 if the client left before its end.
        ended: seconds, monotonic, at which the answer was over.
        asked: what the engine was asked to generate, one for each prompt.
        submitted: seconds, monotonic, at which the engine took it.
        waited: seconds it waited there before prefill.
        first_token: seconds, monotonic, at which the first token came.
        prompt_tokens: tokens that were read.
        reasons: why its sequences ended.
    """

    request_id: str
    method: str
    route: str
    client: str = ""
    traceparent: str = ""
    tracestate: str = ""
    started: float = field(default_factory=time.monotonic)
    started_ns: int = field(default_factory=time.time_ns)
    status: int = 0
    ended: float = 0.0
    asked: Sequence[GenerationRequest] = ()
    submitted: float | None = None
    waited: float | None = None
    first_token: float | None = None
    prompt_tokens: int | None = None
    reasons: list[str] = field(default_factory=list)
    _generated: dict[int, int] = field(default_factory=dict)

    def follow(self, asked: Sequence[GenerationRequest], stream: TokenStream) -> TokenStream:
        """The stream that the engine gave for `asked`, whose events are noted as they are read."""
        self.asked = asked
        self.submitted = time.monotonic()
        self.prompt_tokens = sum(len(one.prompt) for one in asked)
        return _Followed(self, stream)

    def embedded(self, tokens: int) -> None:
        """Note how many tokens an embedding model has read."""
        self.prompt_tokens = tokens

    def note(self, event: TokenEvent) -> None:
        """Take up what an event tells of the request."""
        if self.first_token is None and event.tokens:
            self.first_token = time.monotonic()
            self.waited = event.waited
        self._generated[event.index] = event.tokens
        if event.finish_reason is not None:
            self.reasons.append(event.finish_reason.value)

    @property
    def completion_tokens(self) -> int | None:
        """Tokens generated so far, None for a request that generates none."""
        return sum(self._generated.values()) if self.asked else None

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the request's headers to its first token."""
        return None if self.first_token is None else self.first_token - self.started

    @property
    def seconds(self) -> float:
        """Seconds from the request's headers to the end of its answer."""
        return self.ended - self.started


class _Followed:
    """A stream whose events are noted.

    An object and not a generator, so that a reader that gives up on one event can ask again.
    """

    def __init__(self, record: Record, stream: TokenStream) -> None:
        self._record = record
        self._stream = stream
        self._events: AsyncIterator[TokenEvent] | None = None

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        self._events = aiter(self._stream)
        return self

    async def __anext__(self) -> TokenEvent:
        if self._events is None:
            raise RuntimeError("the stream is not being iterated over")
        event = await anext(self._events)
        self._record.note(event)
        return event

    async def next_events(self) -> Sequence[TokenEvent]:
        events = await self._stream.next_events()
        for event in events:
            self._record.note(event)
        return events

    def cancel(self) -> None:
        self._stream.cancel()
