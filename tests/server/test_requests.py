"""Requests that are refused, limits that are reached, clients that go away."""

import asyncio
import json
import time

import httpx
import openai
import pytest

HELLO = [{"role": "user", "content": "Hello"}]


def assert_error(response, status, *, param=None, word=""):
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert word.lower() in error["message"].lower()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": "much"}, "presence_penalty"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"store": True}, "store"),
        ({"nonsense": 1}, "nonsense"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 100}, "n"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "5"}]}, "messages"),
        ({"messages": "Hello"}, "messages"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(smollm2, change, param):
    response = smollm2.chat(**change)
    assert_error(response, 400, param=param, word=param.rpartition(".")[2])


def test_values_that_change_nothing_are_accepted(smollm2):
    no_ops = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "logprobs": False,
        "response_format": {"type": "text"},
        "tools": None,
        "tool_choice": "none",
        "service_tier": "auto",
        "store": False,
        "user": "someone",
        "n": 1,
        "stop": None,
    }
    assert smollm2.chat(max_tokens=2, **no_ops).status_code == 200


def test_another_model_is_404(smollm2):
    assert_error(smollm2.chat(model="gpt-5"), 404, param="model", word="gpt-5")
    assert_error(smollm2.client.get("/v1/models/gpt-5"), 404, param="model", word="gpt-5")


def test_an_unknown_path_is_404(smollm2):
    assert_error(smollm2.client.get("/v1/nothing"), 404, word="/v1/nothing")


def test_a_wrong_method_is_405(smollm2):
    assert_error(smollm2.client.get("/v1/chat/completions"), 405)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"null", b"[" * 5000])
def test_a_body_that_is_no_request_is_400(smollm2, body):
    headers = {"content-type": "application/json"}
    response = smollm2.client.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    assert smollm2.chat(max_tokens=1).status_code == 200


def test_half_a_character_is_400(smollm2):
    body = json.dumps({"model": smollm2.model, "prompt": "a\ud800"}).encode()
    headers = {"content-type": "application/json"}
    response = smollm2.client.post("/v1/completions", content=body, headers=headers)
    assert_error(response, 400, param="prompt", word="Unicode")


def test_an_empty_prompt_is_400(smollm2):
    assert_error(smollm2.complete(""), 400, param="prompt", word="empty")


def test_a_token_beyond_the_vocabulary_is_400(smollm2):
    assert_error(smollm2.complete([1, 10**6]), 400, param="prompt", word="vocabulary")


def test_what_exceeds_the_context_is_400_before_the_engine_sees_it(smollm2):
    before = smollm2.metric("vllm:prompt_tokens_total")
    response = smollm2.complete("word " * 2000)
    assert_error(response, 400, param="prompt", word="context is 1024 tokens")
    response = smollm2.complete("word", max_tokens=5000)
    assert_error(response, 400, param="max_tokens", word="5000")
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert smollm2.metric("vllm:prompt_tokens_total") == before


def test_output_fills_the_context_to_the_last_token(smollm2):
    prompt = "word " * 1000
    room = 1024 - smollm2.complete(prompt, max_tokens=1).json()["usage"]["prompt_tokens"]
    assert 0 < room < 30
    assert smollm2.complete(prompt, max_tokens=room + 1).status_code == 400
    response = smollm2.complete(prompt, max_tokens=room)
    assert response.status_code == 200
    assert response.json()["usage"]["total_tokens"] == 1024


async def test_a_full_queue_is_429_with_retry_after(smollm2):
    ask = {
        "model": smollm2.model,
        "prompt": "Once upon a time",
        "max_tokens": 60,
        "temperature": 0,
    }
    rejected = smollm2.metric("vllm:admission_rejections_total")
    async with httpx.AsyncClient(base_url=smollm2.url, timeout=120) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/completions", json=ask) for _ in range(16))
        )
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) >= 10  # six in the batch and four waiting
    assert statuses.count(429) >= 1
    assert set(statuses) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert_error(answer, 429, word="queue")
    assert smollm2.metric("vllm:admission_rejections_total") == rejected + statuses.count(429)
    assert smollm2.chat(max_tokens=1).status_code == 200


def wait_until_idle(server, seconds=10):
    deadline = time.monotonic() + seconds
    while server.metric("vllm:num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.metric("vllm:num_requests_running") == 0
    assert server.metric("vllm:num_requests_waiting") == 0


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_goes_away_frees_its_slot(smollm2, streamed):
    wait_until_idle(smollm2)
    aborted = smollm2.metric("vllm:request_success_total", finished_reason="abort")
    ask = {
        "model": smollm2.model,
        "prompt": "Once upon a time",
        "max_tokens": 900,
        "temperature": 0,
        "stream": streamed,
    }
    with httpx.Client(base_url=smollm2.url, timeout=httpx.Timeout(30, read=None)) as client:
        if streamed:
            with client.stream("POST", "/v1/completions", json=ask) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json=ask, timeout=1)
    wait_until_idle(smollm2, seconds=5)
    after = smollm2.metric("vllm:request_success_total", finished_reason="abort")
    assert after == aborted + 1


def test_the_model_list(smollm2):
    cards = smollm2.client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == [smollm2.model]
    assert cards[0]["max_model_len"] == 1024
    assert smollm2.client.get(f"/v1/models/{smollm2.model}").json() == cards[0]


def test_a_generating_model_computes_no_embeddings(smollm2):
    response = smollm2.client.post("/v1/embeddings", json={"model": smollm2.model, "input": "a"})
    assert_error(response, 400, word="no embeddings")


def test_every_answer_has_a_request_id(smollm2):
    ids = {smollm2.client.get("/v1/models").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_the_official_client(smollm2):
    client = openai.OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(
        model=smollm2.model,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
    )
    assert "Paris" in answer.choices[0].message.content
    pieces = client.chat.completions.create(
        model=smollm2.model,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(pieces)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens
    completion = client.completions.create(
        model=smollm2.model, prompt="1, 2, 3,", max_tokens=4, temperature=0
    )
    assert completion.choices[0].finish_reason == "length"
    assert [model.id for model in client.models.list()] == [smollm2.model]
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="other", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        client.chat.completions.create(model=smollm2.model, messages=HELLO, top_logprobs=3)
    client.close()


async def test_the_official_async_client(smollm2):
    async with openai.AsyncOpenAI(
        base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0
    ) as client:

        async def ask():
            pieces = await client.chat.completions.create(
                model=smollm2.model,
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                temperature=0,
                stream=True,
            )
            return "".join([piece.choices[0].delta.content or "" async for piece in pieces])

        texts = await asyncio.gather(*(ask() for _ in range(4)))
    assert len(set(texts)) == 1
    assert "Paris" in texts[0]
