"""The engine over the real SmolLM2 in float32: sampling, grammars, prefixes and faults."""

import asyncio
import json
import re
from contextlib import asynccontextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM, LogitsProcessor

from llm_inference.engine.cache import RowCache
from llm_inference.engine.codec import HuggingFaceCodec
from llm_inference.engine.cpu_runner import CpuRunner
from llm_inference.engine.families import read_decoder
from llm_inference.engine.generation import BatchingEngine
from llm_inference.engine.interface import (
    Capacity,
    FinishReason,
    GenerationRequest,
    Grammar,
    Observer,
    SamplingParams,
)
from llm_inference.engine.runner import CausalRunner
from llm_inference.engine.torch_decoder import array_of

GREEDY = SamplingParams(temperature=0)
POISON = 17  # a token id that no other prompt here has
STORY = "Once upon a time, in a village by the sea, there lived an old fisherman who had never"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "colour": {"enum": ["red", "green", "blue"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 3},
    },
    "required": ["name", "age", "colour", "tags"],
    "additionalProperties": False,
}


class Recorder(Observer):
    def __init__(self):
        self.steps, self.hits = [], []

    def step(self, kind, *, sequences, tokens):
        self.steps.append((kind, tokens))

    def prefix(self, hit, queried):
        self.hits.append((hit, queried))


class Answer:
    """What came of one sequence."""

    def __init__(self):
        self.text, self.tokens, self.logprobs, self.end = "", 0, [], None
        self.pieces = []

    def add(self, event):
        self.text += event.text
        self.logprobs += event.logprobs
        self.pieces.append((event.text, event.logprobs))
        self.tokens = event.tokens
        if event.finish_reason is not None:
            self.end = event


@pytest.fixture(scope="module")
def model(smollm2_dir):
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
    return model.requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def codec(smollm2_dir):
    return HuggingFaceCodec.load(smollm2_dir)


@pytest.fixture(scope="module")
def decoder(model):
    """The model's weights for a native runner; None where that cannot run here."""
    weights = {name: array_of(tensor) for name, tensor in model.state_dict().items()}
    found = read_decoder(model.config.to_dict(), weights)
    return found if found is not None and CpuRunner.supported(found) else None


def hooked(model, rows, length):
    """A runner that calls the transformers model, and so its hooks."""
    config = model.config
    heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    cache = RowCache(
        shapes=[(heads, size, size)] * config.num_hidden_layers,
        rows=rows,
        max_length=length,
        dtype=torch.float32,
        device=model.device,
    )
    return CausalRunner(model=model, cache=cache, windows={"full_attention": None})


@pytest.fixture(scope="module")
def begin(model, decoder, codec):
    """An engine over the model; with `kept` rows for what ended sequences leave."""

    @asynccontextmanager
    async def engine(*, kept=0, rows=6, hooks=False):
        if decoder is None or hooks:
            runner = hooked(model, rows + kept, 512)
        else:
            runner = CpuRunner(decoder, rows=rows + kept, max_length=512)
        recorder = Recorder()
        engine = BatchingEngine(
            codec=codec,
            runner=runner,
            capacity=Capacity(
                max_length=512,
                max_concurrency=rows,
                max_queue=32,
                vocabulary=model.config.vocab_size,
            ),
            eos=frozenset({model.config.eos_token_id}),
            observer=recorder,
        )
        engine.recorder = recorder
        yield engine
        await engine.close()

    return engine


@pytest.fixture(scope="module")
def reference(model, codec):
    """What `generate()` makes of a prompt greedily: token ids and the model's own logits."""

    def generate(prompt, tokens, **more):
        ids = torch.tensor([codec.encode(prompt)])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **more,
        )
        return output.sequences[0, ids.shape[1] :].tolist(), torch.cat(output.logits)

    return generate


def ask(codec, prompt, tokens=20, **more):
    more.setdefault("sampling", GREEDY)
    return GenerationRequest(
        prompt=codec.encode(prompt), max_tokens=tokens, continues_prompt=True, **more
    )


async def collect(engine, request):
    answers = [Answer() for _ in range(request.n)]
    async with asyncio.timeout(120):
        async for event in engine.submit(request):
            answers[event.index].add(event)
    return answers


async def answer(engine, request):
    return (await collect(engine, request))[0]


def drawn(seed, temperature=1.0, **more):
    return SamplingParams(seed=seed, temperature=temperature, **more)


class Presence(LogitsProcessor):
    """Presence and frequency penalties by their definition."""

    def __init__(self, prompt, presence, frequency):
        self.prompt, self.presence, self.frequency = prompt, presence, frequency

    def __call__(self, ids, scores):
        for token in ids[0, self.prompt :].unique():
            number = (ids[0, self.prompt :] == token).sum()
            scores[0, token] -= self.presence + self.frequency * number
        return scores


def without_end(tokens):
    """The end token has no text, and so nothing is told of it."""
    return [token for token in tokens if token != 2]


async def test_penalties_and_biases_equal_those_of_transformers(begin, codec, reference):
    prompt = "one two three one two three one two"
    bias = {codec.encode(" four")[0]: 6.0, codec.encode(" one")[0]: -100.0}
    length = len(codec.encode(prompt))
    cases = [
        (SamplingParams(temperature=0), {}),
        (SamplingParams(temperature=0, repetition_penalty=1.3), {"repetition_penalty": 1.3}),
        (
            SamplingParams(temperature=0, logit_bias=bias),
            {"sequence_bias": {(token,): value for token, value in bias.items()}},
        ),
        (
            SamplingParams(temperature=0, presence_penalty=0.7, frequency_penalty=0.4),
            {"logits_processor": [Presence(length, 0.7, 0.4)]},
        ),
    ]
    async with begin() as engine:
        alone = [
            (await answer(engine, ask(codec, prompt, 16, sampling=sampling, logprobs=0))).logprobs
            for sampling, _ in cases
        ]
        mixed = await asyncio.gather(
            *(
                answer(engine, ask(codec, prompt, 16, sampling=sampling, logprobs=0))
                for sampling, _ in cases
            ),
            answer(engine, ask(codec, prompt, 9, sampling=drawn(3, presence_penalty=1))),
        )
    expected = [without_end(reference(prompt, 16, **parameters)[0]) for _, parameters in cases]
    assert [[entry.token for entry in entries] for entries in alone] == expected
    assert [[entry.token for entry in one.logprobs] for one in mixed[:4]] == expected
    assert len({tuple(tokens) for tokens in expected}) == 4


async def test_log_probabilities_are_the_models_own(begin, codec, reference):
    async with begin() as engine:
        request = ask(codec, STORY, 16, logprobs=5)
        # A temperature and a bias change what is chosen, not what is told of it.
        hot = ask(codec, STORY, 4, logprobs=2, sampling=drawn(5, 1.7, logit_bias={40: 3.0}))
        plain, other = await asyncio.gather(answer(engine, request), answer(engine, hot))
    tokens, logits = reference(STORY, 16)
    expected = logits.log_softmax(-1)
    assert [entry.token for entry in plain.logprobs] == tokens
    for entry, row in zip(plain.logprobs, expected, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token].item(), abs=1e-4)
        values, ids = row.topk(5)
        assert [token for token, _ in entry.top] == ids.tolist()
        assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-4)
    first = other.logprobs[0]
    assert first.logprob == pytest.approx(expected[0, first.token].item(), abs=1e-4)
    assert [token for token, _ in first.top] == expected[0].topk(2).indices.tolist()


async def test_log_probabilities_go_with_their_text(begin, codec):
    async with begin() as engine:
        whole = await answer(engine, ask(codec, STORY, 16, logprobs=0))
        stop = whole.text[20:24]
        cut = await answer(engine, ask(codec, STORY, 16, logprobs=0, stop=(stop, "\n\n\n")))
    assert len(whole.logprobs) == whole.tokens == 16
    assert cut.text == whole.text[: whole.text.index(stop)]
    for text, entries in whole.pieces:
        assert codec.decode([entry.token for entry in entries]) == text
    sent, told = "", []
    for text, entries in cut.pieces[:-1]:
        sent, told = sent + text, told + [entry.token for entry in entries]
        assert sent.startswith(codec.decode(told))
    told = codec.decode([entry.token for entry in cut.logprobs])
    # The token in which the stop string begins is told of, none that is wholly in it or after it.
    assert told.startswith(cut.text)
    assert whole.text.startswith(told)
    assert len(codec.decode([entry.token for entry in cut.logprobs[:-1]])) < len(cut.text)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
async def test_every_answer_keeps_to_its_schema(begin, codec, temperature):
    async with begin() as engine:
        constraint = engine.compile(Grammar(kind="json_schema", source=json.dumps(SCHEMA)))
        request = ask(
            codec,
            "A person in JSON:",
            200,
            n=5,
            sampling=drawn(1, temperature),
            constraint=constraint,
        )
        free = ask(codec, STORY, 30)
        results, before = await asyncio.gather(collect(engine, request), answer(engine, free))
        after = await answer(engine, free)
    assert before.text == after.text
    for result in results:
        assert result.end.finish_reason is FinishReason.STOP, result.end
        found = json.loads(result.text)
        assert set(found) == set(SCHEMA["required"])
        assert len(found["name"]) <= 12
        assert 0 <= found["age"] <= 120
        assert found["colour"] in ("red", "green", "blue")
        assert len(found["tags"]) <= 3
        assert all(len(tag) <= 6 for tag in found["tags"])
    assert len({result.text for result in results}) == 5


@pytest.mark.parametrize(
    ("kind", "source", "pattern"),
    [
        ("regex", "[0-9]{3}-[a-f]{1,9}x", r"\d{3}-[a-f]{1,9}x"),
        ("choice", '["yes", "no", "per\\"haps"]', r'yes|no|per"haps'),
        ("lark", 'start: "a" "b"~1..5 "c"', "ab{1,5}c"),
    ],
)
async def test_other_grammars_are_kept_to(begin, codec, kind, source, pattern):
    async with begin() as engine:
        constraint = engine.compile(Grammar(kind=kind, source=source))
        request = ask(
            codec,
            "Say it:",
            64,
            n=4,
            sampling=drawn(2, 1.5),
            constraint=constraint,
            ignore_eos=True,
        )
        for result in await collect(engine, request):
            assert re.fullmatch(pattern, result.text)
            assert result.end.finish_reason is FinishReason.STOP


async def test_a_json_object_is_one(begin, codec):
    async with begin() as engine:
        constraint = engine.compile(Grammar(kind="json_object"))
        request = ask(
            codec, "A short JSON object:", 60, n=4, sampling=drawn(4), constraint=constraint
        )
        for result in await collect(engine, request):
            if result.end.finish_reason is FinishReason.STOP:
                assert isinstance(json.loads(result.text), dict)
            else:
                assert result.text.lstrip().startswith("{")


async def test_a_grammar_that_fails_ends_its_sequence_alone(begin, codec, monkeypatch):
    async with begin() as engine:
        constraint = engine.compile(Grammar(kind="regex", source="[a-z ]{200}"))
        failing = constraint.matcher

        def matcher():
            # A sequence that has gone on past what its grammar allows.
            state = failing()
            state.accept(codec.encode("A1")[0])
            return state

        monkeypatch.setattr(constraint, "matcher", matcher)
        bad, good = await asyncio.gather(
            answer(engine, ask(codec, STORY, 20, constraint=constraint)),
            answer(engine, ask(codec, STORY, 20)),
        )
        alone = await answer(engine, ask(codec, STORY, 20))
    assert bad.end.finish_reason is FinishReason.ERROR
    assert "grammar" in bad.end.error
    assert good.text == alone.text


async def test_the_choices_of_a_request_read_its_prompt_once(begin, codec, reference):
    async with begin() as engine:
        request = ask(codec, STORY, 12, n=5)
        answers = await collect(engine, request)
        read = sum(tokens for kind, tokens in engine.recorder.steps if kind == "prefill")
    assert read == len(request.prompt)
    expected = codec.decode(reference(STORY, 12)[0])
    assert [result.text for result in answers] == [expected] * 5


async def test_texts_do_not_depend_on_what_is_reused(begin, codec):
    system = "You are a helpful assistant who answers in one sentence. " * 4
    prompts = [system + question for question in ("Who are you?", "Why is the sky blue?", "Why?")]
    requests = [
        ask(codec, prompt, 16, sampling=sampling)
        for prompt in prompts
        for sampling in (GREEDY, drawn(9))
    ]
    async with begin() as engine:
        expected = [(await answer(engine, request)).text for request in requests]
        assert [hit for hit, _ in engine.recorder.hits] == [0] * 6
    async with begin(kept=8) as engine:
        one_by_one = [(await answer(engine, request)).text for request in requests]
        hits = [hit for hit, _ in engine.recorder.hits]
        more = ask(codec, prompts[0] + one_by_one[0] + " Thank you. And what else?", 16)
        last = await answer(engine, more)
        grown = engine.recorder.hits[-1][0]
    async with begin(kept=3) as engine:
        at_once = await asyncio.gather(*(answer(engine, request) for request in requests))
        shared = [hit for hit, _ in engine.recorder.hits]
        expected_last = await answer(engine, more)
    assert one_by_one == expected
    assert [result.text for result in at_once] == expected
    assert last.text == expected_last.text
    common = len(codec.encode(system))
    assert hits[0] == 0
    assert min(hits[1:]) >= common - 2
    assert min(shared[1:]) >= common - 2
    # A conversation goes on where the answer ended, not where the prompt did.
    assert grown > len(requests[0].prompt)


@pytest.mark.parametrize("fault", ["nan", "raise", "memory"])
async def test_a_poisoned_request_ends_alone(begin, model, codec, fault):
    def poison(_, inputs, output):
        hurt = inputs[0] == POISON
        if hurt.any() and fault == "raise":
            raise RuntimeError("a hook failed")
        if hurt.any() and fault == "memory":
            raise torch.OutOfMemoryError("no memory")
        return output.masked_fill(hurt.unsqueeze(-1), torch.nan)

    async with begin(rows=3, hooks=True) as engine:
        expected = await answer(engine, ask(codec, STORY, 10))
        handle = model.get_input_embeddings().register_forward_hook(poison)
        try:
            bad = GenerationRequest(prompt=[*codec.encode(STORY), POISON], max_tokens=5)
            good, hurt, _ = await asyncio.gather(
                answer(engine, ask(codec, STORY, 10)),
                answer(engine, bad),
                answer(engine, ask(codec, STORY, 5)),
            )
            # Whoever gets the row next does not find what is not a number there.
            after = await collect(engine, ask(codec, STORY, 10, n=3))
        finally:
            handle.remove()
        assert engine.alive
        assert engine.load().running == 0
    assert hurt.end.finish_reason is FinishReason.ERROR
    assert [result.text for result in (good, *after)] == [expected.text] * 4


async def test_a_seed_gives_the_same_text_in_any_company(begin, codec):
    sampling = [
        drawn(7),
        drawn(11, top_p=0.8),
        drawn(12, top_k=20, min_p=0.05),
        drawn(13, 1.3, frequency_penalty=0.5, logit_bias={50: 1.0}),
    ]
    requests = [ask(codec, STORY, 20, sampling=each) for each in sampling]
    async with begin() as engine:
        alone = [(await answer(engine, request)).text for request in requests]
        company = [ask(codec, "def fibonacci(n):", n, sampling=drawn(n)) for n in (5, 20)]
        mixed = await asyncio.gather(*(answer(engine, r) for r in [*company, *requests]))
    assert [result.text for result in mixed[2:]] == alone
    assert len(set(alone)) == 4


async def test_ignoring_the_end_goes_on_to_the_length(begin, codec):
    prompt = codec.encode_chat([{"role": "user", "content": "Say only: yes"}])
    async with begin() as engine:
        for ignore_eos in (False, True):
            request = GenerationRequest(
                prompt=prompt, max_tokens=60, sampling=GREEDY, ignore_eos=ignore_eos
            )
            end = (await answer(engine, request)).end
            assert (end.finish_reason is FinishReason.LENGTH) == ignore_eos
            assert (end.tokens == 60) == ignore_eos
