"""What an engine takes and gives: requests, events, errors, the engine's own protocol.

Knows no torch and no HTTP, so that routes and schedulers can both speak it.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol


class EngineError(Exception):
    """The request failed in the engine; others are unharmed."""


class EngineFullError(EngineError):
    """The waiting queue is full; `retry_after` says in how many seconds to try again.

    `of` is what it is full of, as vLLM names the two bounds.
    """

    def __init__(
        self,
        retry_after: int,
        of: Literal["max_num_queued_reqs", "max_num_queued_tokens"] = "max_num_queued_reqs",
    ) -> None:
        super().__init__("The server is at capacity: its queue is full.")
        self.retry_after = retry_after
        self.of = of


class EngineClosedError(EngineError):
    """The engine is closed or dead and serves no more."""


class GrammarError(ValueError):
    """A grammar that cannot be kept to; the message says what is wrong with it."""


class FinishReason(StrEnum):
    """Why a sequence ended. The first two are a client's business, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen; the defaults change nothing.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 and `min_p` 0 keep every token.
    `seed` makes the choice a function of the prompt alone; None draws a fresh one.

    Penalties and biases change the logits before all of these, for greedy choices too.
    `presence_penalty` is taken once from the logit of each token generated so far,
    `frequency_penalty` as often as it was generated. `repetition_penalty` divides positive logits
    and multiplies negative ones of tokens in the prompt or generated; 1 changes nothing.
    `logit_bias` is added to the logits of its token ids.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """What a text must look like.

    Attributes:
        kind: `json_object` (any JSON object), `json_schema`, `regex`, `choice` (JSON list of
            strings) or `lark` (llguidance's dialect).
        source: the schema, pattern, list or grammar; empty for `json_object`.
    """

    kind: Literal["json_object", "json_schema", "regex", "choice", "lark"]
    source: str = ""


class Constraint(Protocol):
    """A grammar compiled for the model's tokenizer; made by `GenerationEngine.compile`.

    Each sequence keeps to it by a state of its own, so one may be used for many requests.
    """


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """`n` continuations of one prompt of token ids, each at most `max_tokens` long.

    With `continues_prompt` the text goes on where the prompt's stops, so a leading space is kept;
    without it the text starts anew, as an assistant's answer does.

    Attributes:
        logprobs: None for none, 0 for the chosen tokens' own, else also so many most likely ones.
        constraint: what the text must keep to.
        ignore_eos: go on to `max_tokens`, whatever the model says.
        client: who asks. Waiting requests of different clients are admitted in turn.
    """

    prompt: Sequence[int]
    max_tokens: int
    n: int = 1
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    continues_prompt: bool = False
    logprobs: int | None = None
    constraint: Constraint | None = None
    ignore_eos: bool = False
    client: str = ""


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A generated token, its log probability, and the most likely ones of its step.

    The probabilities are the model's own: before temperature, penalties, biases and grammar.
    `top` is (token id, log probability) in falling order.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """What one step added to sequence `index` of a request.

    `text` is whole characters, safe to send: nothing that a stop string may yet swallow.
    `tokens` counts all tokens generated so far. `logprobs`, if asked for, are of the tokens since
    the event before. The last event has a `finish_reason`. `waited` is how many seconds the
    sequence waited before its prefill began, `reused` how many tokens of its prompt were in the
    cache already.
    """

    index: int
    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    error: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    waited: float = 0.0
    reused: int = 0


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """How much fits: tokens (prompt + output) in a sequence, sequences in a batch and waiting.

    Token ids are less than `vocabulary`. `max_queue_tokens` bounds the tokens, prompts and longest
    outputs together, of the sequences that wait for a place; None leaves it to the engine.
    """

    max_length: int
    max_concurrency: int
    max_queue: int
    vocabulary: int
    max_queue_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the engine holds now; `cache_usage` is the used share of the KV cache, 0 to 1."""

    running: int
    waiting: int
    cache_usage: float


@dataclass(frozen=True, kw_only=True)
class DeviceReport:
    """What the model runs on.

    Attributes:
        type: cpu or cuda.
        name: the processor's or the card's own.
        dtype: type that is computed in.
        memory_bytes: the card's memory; on cpu what this container may use.
        threads: that compute.
    """

    type: str
    name: str
    dtype: str
    memory_bytes: int
    threads: int


class Observer(Protocol):
    """Hears what an engine does, from the engine's thread. Must be quick and never raise."""

    def queued(self, seconds: float) -> None:
        """A sequence waited this long before its prefill began."""

    def first_token(self, seconds: float) -> None:
        """A sequence got its first token this long after it was submitted."""

    def inter_token(self, seconds: float) -> None:
        """A sequence got a further token this long after the one before."""

    def step(self, kind: str, *, sequences: int, tokens: int) -> None:
        """A forward pass of `kind` prefill or decode ran over so many sequences and tokens."""

    def prefilled(self, seconds: float) -> None:
        """A sequence got its first token this long after its prefill began."""

    def decoded(self, seconds: float, *, tokens: int) -> None:
        """A sequence ended well; this long from its first token to its last, `tokens` later."""

    def prefix(self, hit: int, queried: int) -> None:
        """Of a prompt of `queried` tokens, `hit` were in the cache already."""

    def finished(self, reason: str, *, prompt: int, generated: int, seconds: float) -> None:
        """A sequence ended after so many seconds with so many tokens."""


class TextCodec(Protocol):
    """Text to token ids and back, for the model's own tokenizer.

    Attributes:
        chat_template: the source of the model's chat template; empty if it has none.
    """

    has_chat_template: bool
    chat_template: str

    def added_token(self, text: str) -> int | None:
        """The id of the token, special or added by the model's makers, that is written so."""

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the special tokens the model expects around it."""

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation, ending where the assistant's answer starts.

        Raises:
            ValueError: the model's chat template refuses the messages.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text; a part of a character, perhaps."""


class TokenStream(Protocol):
    """The events of one request, in order, until each of its sequences has finished."""

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Iterate once; ends after the last sequence's last event."""

    async def next_events(self) -> Sequence[TokenEvent]:
        """Wait for an event and take all that are there; none after the last sequence's last."""

    def cancel(self) -> None:
        """End the request if it still runs; its slots are free within a step. Idempotent."""


class _Lives(ABC):
    """What both kinds of engine have."""

    capacity: Capacity

    @property
    @abstractmethod
    def alive(self) -> bool:
        """False once no request can be served any more and only a restart helps."""

    @property
    @abstractmethod
    def stalled_seconds(self) -> float:
        """How long the model has been at the step it is at; 0 between steps."""

    @abstractmethod
    def load(self) -> Load:
        """What the engine holds now."""

    @abstractmethod
    async def close(self) -> None:
        """End what runs and stop the engine's thread."""


class GenerationEngine(_Lives):
    """A model that continues prompts."""

    codec: TextCodec

    @abstractmethod
    def compile(self, grammar: Grammar) -> Constraint:
        """Make a grammar ready for requests; may take a while and is called in any thread.

        Raises:
            GrammarError: it is malformed, or asks for what cannot be kept to.
        """

    @abstractmethod
    def submit(self, request: GenerationRequest) -> TokenStream:
        """Admit a request at once; call `cancel` on the stream when done with it.

        Raises:
            EngineFullError: the queue has no room for `n` more sequences or their tokens.
            EngineClosedError: the engine serves no more.
            ValueError: the request does not fit `capacity`; check before.
        """


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Vectors in the order of the inputs and the number of tokens read."""

    vectors: list[list[float]]
    tokens: int


# A text, or the token ids of one with its special tokens.
TextInput = str | Sequence[int]


class EmbeddingEngine(_Lives):
    """A model that turns texts into vectors.

    Attributes:
        dimensions: the lengths that its vectors may be cut to, rising to their own.
    """

    dimensions: Sequence[int]

    @abstractmethod
    def count_tokens(self, texts: Sequence[TextInput]) -> list[int]:
        """Tokens of each text, special tokens included."""

    @abstractmethod
    async def embed(self, texts: Sequence[TextInput]) -> Embeddings:
        """One vector for each text.

        Raises:
            EngineFullError: the queue has no room.
            EngineClosedError: the engine serves no more.
            ValueError: a text does not fit `capacity`; check before.
        """


Engine = GenerationEngine | EmbeddingEngine
