"""The engine for models that generate text: a codec, a scheduler and a runner put together."""

from llm_inference.engine.codec import HuggingFaceCodec
from llm_inference.engine.grammar import CompiledGrammar, GrammarCompiler
from llm_inference.engine.interface import (
    Capacity,
    GenerationEngine,
    GenerationRequest,
    Grammar,
    Load,
    Observer,
)
from llm_inference.engine.scheduler import Scheduler
from llm_inference.engine.sequence import EventStream
from llm_inference.engine.step import Runner


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
        self._grammars = GrammarCompiler(
            tokenizer=codec.tokenizer_json, vocabulary=capacity.vocabulary, eos=eos
        )
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

    @property
    def stalled_seconds(self) -> float:
        """How long the model has been at the step it is at; 0 between steps."""
        return self._scheduler.stalled_seconds

    def load(self) -> Load:
        """What the engine holds now."""
        return self._scheduler.load()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Make a grammar ready for requests; see `GenerationEngine.compile`."""
        return self._grammars.compile(grammar)

    def submit(self, request: GenerationRequest) -> EventStream:
        """Admit a request or refuse it at once."""
        return self._scheduler.submit(request)

    async def close(self) -> None:
        """Abort what runs and stop the engine's thread."""
        await self._scheduler.close()
