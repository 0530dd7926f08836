"""The streams of a request's prompts as one stream. Knows the engine's interface only."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from llm_inference.engine.interface import TokenEvent, TokenStream


class MergedStream:
    """Several streams as one, whose choices are numbered on from stream to stream.

    Args:
        streams: at least one, each of as many choices.
        choices: how many.
    """

    def __init__(self, streams: Sequence[TokenStream], *, choices: int) -> None:
        self._streams = streams
        self._open = len(streams)
        self._ready: list[TokenEvent] = []
        self._wake = asyncio.Event()
        self._readers = [
            asyncio.create_task(self._read(stream, place * choices))
            for place, stream in enumerate(streams)
        ]

    async def next_events(self) -> list[TokenEvent]:
        """Wait for an event and take all that are there; none after the last."""
        while not self._ready and self._open:
            self._wake.clear()
            await self._wake.wait()
        events, self._ready = self._ready, []
        return events

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Events as they come, until each stream has ended."""
        while events := await self.next_events():
            for event in events:
                yield event

    def cancel(self) -> None:
        """End all streams."""
        for reader in self._readers:
            reader.cancel()
        for stream in self._streams:
            stream.cancel()

    async def _read(self, stream: TokenStream, first: int) -> None:
        try:
            while events := await stream.next_events():
                self._ready.extend(replace(event, index=first + event.index) for event in events)
                self._wake.set()
        finally:
            self._open -= 1
            self._wake.set()
