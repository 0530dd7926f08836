"""The engine for models that generate text: a codec, a scheduler and a runner put together."""

from llm_inference.engine.codec import HuggingFaceCodec
from llm_inference.engine.interface import (
    Capacity,
    GenerationEngine,
    GenerationRequest,
    Load,
    Observer,
)
from llm_inference.engine.scheduler import Runner, Scheduler
from llm_inference.engine.sequence import EventStream


class BatchingEngine(GenerationEngine):
    """Serves many requests with one model by continuous batching; see `GenerationEngine`."""

    def __init__(
        self,
        *,
        codec: HuggingFaceCodec,
        runner: Runner,
        capacity: Capacity,
        eos: frozenset[int],
        observer: Observer,
    ) -> None:
        self.codec = codec
        self.capacity = capacity
        self._scheduler = Scheduler(
            runner=runner,
            capacity=capacity,
            eos=eos,
            detokenizer=codec.detokenizer,
            observer=observer,
        )
        self._scheduler.start()

    @property
    def alive(self) -> bool:
        """False once no request can be served any more."""
        return self._scheduler.alive

    def load(self) -> Load:
        """What the engine holds now."""
        return self._scheduler.load()

    def submit(self, request: GenerationRequest) -> EventStream:
        """Admit a request or refuse it at once."""
        return self._scheduler.submit(request)

    async def close(self) -> None:
        """Abort what runs and stop the engine's thread."""
        await self._scheduler.close()
