"""What SmolLM2 answers, and that the batch it is answered in does not matter."""

import asyncio
import json

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived",
    "def fibonacci(n):",
    "Water boils at",
    "1, 2, 3, 4,",
    "The three primary colours are red, and the history of painting tells us that " * 12,
]


@pytest.fixture(scope="module")
def reference(smollm2_dir):
    """Text and number of tokens that `generate()` makes of a prompt, greedily."""
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)

    def generate(prompt, tokens):
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        new = output[0, inputs.input_ids.shape[1] :].tolist()
        return tokenizer.decode(new, skip_special_tokens=True), len(new)

    return generate


async def together(server, bodies, path="/v1/completions"):
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        answers = await asyncio.gather(
            *(client.post(path, json={"model": server.model, **body}) for body in bodies)
        )
    assert [answer.status_code for answer in answers] == [200] * len(bodies)
    return [answer.json() for answer in answers]


def events(response):
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def stream(server, path, **body):
    with server.client.stream(
        "POST", path, json={"model": server.model, "stream": True, **body}
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, done = events(response)
    assert done == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def test_the_capital_of_france(smollm2):
    answer = smollm2.chat().json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_greedy_alone_equals_generate(smollm2, reference):
    for prompt in PROMPTS:
        answer = smollm2.complete(prompt, max_tokens=16).json()
        found = answer["choices"][0]["text"], answer["usage"]["completion_tokens"]
        assert found == reference(prompt, 16)


async def test_greedy_in_a_mix_equals_generate(smollm2, reference):
    lengths = [40, 7, 25, 31, 12, 18]
    mix = [
        {"prompt": prompt, "max_tokens": tokens, "temperature": 0}
        for prompt, tokens in zip(PROMPTS, lengths, strict=True)
    ]
    # Company that samples, streams in and out, and leaves early.
    mix[2:2] = [{"prompt": "Hello", "max_tokens": 5, "temperature": 1.5, "seed": 3}] * 2
    answers = await together(smollm2, mix)
    del answers[2:4]
    found = [(a["choices"][0]["text"], a["usage"]["completion_tokens"]) for a in answers]
    assert found == [reference(p, n) for p, n in zip(PROMPTS, lengths, strict=True)]


async def test_concurrent_requests_share_forward_passes(smollm2):
    before = smollm2.metric("llm_engine_steps_total", kind="decode")
    bodies = [{"prompt": p, "max_tokens": 40, "temperature": 0} for p in PROMPTS]
    answers = await together(smollm2, bodies)
    steps = smollm2.metric("llm_engine_steps_total", kind="decode") - before
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert steps < tokens / 3


def test_a_stream_is_the_answer_in_pieces(smollm2):
    whole = smollm2.chat("Write two sentences about the sea.", max_tokens=40).json()
    chunks = stream(
        smollm2,
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "Write two sentences about the sea."}],
        temperature=0,
        max_tokens=40,
        stream_options={"include_usage": True},
    )
    *pieces, last = chunks
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert text == whole["choices"][0]["message"]["content"]
    assert pieces[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert len(pieces) > 20
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stream_without_include_usage_has_none(smollm2):
    chunks = stream(smollm2, "/v1/completions", prompt="A", max_tokens=3, temperature=0)
    assert all("usage" not in chunk for chunk in chunks)


def test_characters_arrive_whole(smollm2):
    prompt = "Emoji: 😀 😃 😄 😁 😆 😅 😂 🤣 😊 😇 🙂 🙃 😉 😌 😍 🥰 😘"
    whole = smollm2.complete(prompt, max_tokens=40).json()["choices"][0]["text"]
    chunks = stream(smollm2, "/v1/completions", prompt=prompt, max_tokens=40, temperature=0)
    pieces = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(pieces) == whole
    assert any(ord(char) > 0xFFFF for char in whole)
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_seed_gives_the_same_text_again(smollm2):
    ask = {"max_tokens": 30, "temperature": 1.0}
    texts = [
        smollm2.complete("My favourite story", seed=seed, **ask).json()["choices"][0]["text"]
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


async def test_a_seed_gives_the_same_text_in_any_mix(smollm2):
    ask = {"prompt": "My favourite story", "max_tokens": 30, "temperature": 1.0}
    parameters = [{"seed": 7}, {"seed": 11, "top_p": 0.8}, {"seed": 12, "top_k": 20, "min_p": 0.05}]
    alone = [
        smollm2.complete(**{**ask, **more}).json()["choices"][0]["text"] for more in parameters
    ]
    company = [{"prompt": p, "max_tokens": 20, "temperature": 1.2} for p in PROMPTS[:3]]
    answers = await together(smollm2, [*company, *({**ask, **more} for more in parameters)])
    assert [answer["choices"][0]["text"] for answer in answers[3:]] == alone


def test_without_a_seed_answers_differ(smollm2):
    texts = {
        smollm2.complete("My favourite", max_tokens=20, temperature=1).json()["choices"][0]["text"]
        for _ in range(3)
    }
    assert len(texts) > 1


def test_n_gives_different_choices_and_counts_them(smollm2):
    ask = {"n": 3, "seed": 5, "temperature": 1.0, "max_tokens": 12}
    answer = smollm2.complete("My favourite story", **ask).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer["usage"]["completion_tokens"] == 36
    assert smollm2.complete("My favourite story", **ask).json()["choices"] == answer["choices"]


@pytest.mark.parametrize("streamed", [False, True])
def test_stop_strings_end_the_text_and_are_not_in_it(smollm2, streamed):
    full = smollm2.complete("1, 2, 3, 4,", max_tokens=40).json()["choices"][0]["text"]
    stop = full[9:14]  # cuts across tokens
    ask = {"prompt": "1, 2, 3, 4,", "max_tokens": 40, "temperature": 0, "stop": ["zzz", stop]}
    if streamed:
        chunks = stream(smollm2, "/v1/completions", **ask)
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = smollm2.complete(**ask).json()["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
    assert text == full[: full.index(stop)]
    assert reason == "stop"


def test_a_prompt_may_be_token_ids(smollm2, smollm2_dir):
    ids = AutoTokenizer.from_pretrained(smollm2_dir)("The capital of France is").input_ids
    by_ids = smollm2.complete(ids, max_tokens=8).json()
    by_text = smollm2.complete("The capital of France is", max_tokens=8).json()
    assert by_ids["choices"] == by_text["choices"]


def test_a_prompt_longer_than_a_prefill_chunk_is_read(smollm2, reference):
    prompt = "The quick brown fox jumps over the lazy dog. " * 80
    answer = smollm2.complete(prompt, max_tokens=12).json()
    assert answer["usage"]["prompt_tokens"] > 600
    assert answer["choices"][0]["text"] == reference(prompt, 12)[0]
