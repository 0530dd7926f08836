"""From a request of the API to a request of the engine.

Knows bounds that depend on the model, and which parameters ask for a grammar.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastapi import Request

from llm_inference.engine.interface import (
    Capacity,
    Constraint,
    EngineError,
    GenerationEngine,
    GenerationRequest,
    Grammar,
    GrammarError,
    SamplingParams,
    TokenStream,
)
from llm_inference.errors import ApiError
from llm_inference.record import Record
from llm_inference.routes.engines import refused
from llm_inference.routes.merging import MergedStream
from llm_inference.schemas.generation import (
    GenerationParameters,
    JsonObjectFormat,
    JsonSchemaFormat,
)
from llm_inference.serving import Serving
from llm_inference.tools import ToolUse


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the prompts of a request have in common.

    Attributes:
        source: the parameter that the prompts come from.
        limit: tokens of the output, None for what fits.
        continues: whether the text goes on where the prompt's stops.
        logprobs: as the engine takes it.
        constraint: what the text must keep to.
    """

    source: str
    limit: int | None
    continues: bool
    logprobs: int | None
    constraint: Constraint | None


def submit(
    serving: Serving,
    request: Request,
    body: GenerationParameters,
    prompts: Sequence[Sequence[int]],
    asked: Asked,
) -> TokenStream:
    """The stream of all choices, `n` for each prompt, once the engine has admitted them.

    Raises:
        ApiError: a parameter or prompt does not fit the model, or the engine is full.
    """
    engine = serving.engine
    if not isinstance(engine, GenerationEngine):
        raise TypeError("a route has found its engine before")
    record: Record = request.state.record
    requests = [_request(engine.capacity, body, prompt, asked, record.client) for prompt in prompts]
    room = engine.capacity.max_concurrency + engine.capacity.max_queue
    if sum(one.n for one in requests) > room:
        raise ApiError(
            400, f"Prompts times n are {room} at most here: send fewer.", param=asked.source
        )
    streams: list[TokenStream] = []
    try:
        streams.extend(engine.submit(one) for one in requests)
    except EngineError as error:
        for stream in streams:
            stream.cancel()
        raise refused(serving, error) from error
    merged = streams[0] if len(streams) == 1 else MergedStream(streams, choices=requests[0].n)
    return record.follow(requests, merged)


async def constraint(
    engine: GenerationEngine, body: GenerationParameters, tools: ToolUse | None = None
) -> Constraint | None:
    """What the answer must keep to, compiled.

    Args:
        engine: compiles it.
        body: may ask for a grammar.
        tools: what may be called in it; their grammar sees to the response format as well.

    Raises:
        ApiError: 400, there are several, or one that cannot be kept to.
    """
    wanted: list[tuple[str, Grammar | None]] = list(_grammars(body))
    if tools is not None:
        wanted = [item for item in wanted if item[0] != "response_format"]
        wanted.append(("tools", tools.grammar))
    if len(wanted) > 1:
        names = " and ".join(name for name, _ in wanted)
        raise ApiError(400, f"An answer cannot keep to {names} at once.", param=wanted[1][0])
    param, grammar = wanted[0] if wanted else ("", None)
    if grammar is None:
        return None
    try:
        # Large schemas take their time, and the event loop has other clients.
        return await asyncio.to_thread(engine.compile, grammar)
    except GrammarError as error:
        raise ApiError(400, f"{param}: {error}", param=param, code="invalid_value") from error


def _grammars(body: GenerationParameters) -> Iterator[tuple[str, Grammar]]:
    """The parameters that ask for a grammar, with it."""
    if isinstance(body.response_format, JsonObjectFormat):
        yield "response_format", Grammar(kind="json_object")
    elif isinstance(body.response_format, JsonSchemaFormat):
        schema = body.response_format.json_schema.schema_
        if schema is None:
            yield "response_format", Grammar(kind="json_object")
        else:
            yield "response_format", Grammar(kind="json_schema", source=json.dumps(schema))
    if body.guided_json is not None:
        source = body.guided_json
        text = source if isinstance(source, str) else json.dumps(source)
        yield "guided_json", Grammar(kind="json_schema", source=text)
    if body.guided_regex is not None:
        yield "guided_regex", Grammar(kind="regex", source=body.guided_regex)
    if body.guided_choice is not None:
        yield "guided_choice", Grammar(kind="choice", source=json.dumps(body.guided_choice))
    if body.guided_grammar is not None:
        yield "guided_grammar", Grammar(kind="lark", source=body.guided_grammar)


def check_tokens(tokens: Sequence[int], capacity: Capacity, param: str) -> None:
    """Compare token ids with the vocabulary.

    Raises:
        ApiError: 400, one is beyond it.
    """
    if tokens and max(tokens) >= capacity.vocabulary:
        raise ApiError(
            400,
            f"{param}: a token id is beyond the model's vocabulary of {capacity.vocabulary}.",
            param=param,
        )


def _request(
    capacity: Capacity, body: GenerationParameters, prompt: Sequence[int], asked: Asked, client: str
) -> GenerationRequest:
    limit, longest = asked.limit, capacity.max_length
    if not prompt:
        raise ApiError(400, "The prompt is empty.", param=asked.source)
    if len(prompt) + (limit or 1) > longest:
        wanted = f" and {limit} for the output" if limit else ""
        raise ApiError(
            400,
            f"The model's context is {longest} tokens, but the request needs {len(prompt)} "
            f"for its {asked.source}{wanted}.",
            param=asked.source if len(prompt) >= longest else "max_tokens",
            code="context_length_exceeded",
        )
    count = body.n or 1
    if count > capacity.max_concurrency:
        raise ApiError(400, f"n is at most {capacity.max_concurrency} here.", param="n")
    return GenerationRequest(
        prompt=prompt,
        max_tokens=limit or longest - len(prompt),
        n=count,
        sampling=_sampling(body, capacity),
        stop=body.stops,
        continues_prompt=asked.continues,
        logprobs=asked.logprobs,
        constraint=asked.constraint,
        ignore_eos=bool(body.ignore_eos),
        client=client,
    )


def _sampling(body: GenerationParameters, capacity: Capacity) -> SamplingParams:
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    check_tokens(list(bias), capacity, "logit_bias")
    return SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        seed=body.seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=bias,
    )
