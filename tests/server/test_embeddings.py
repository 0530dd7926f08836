"""MiniLM's vectors, against transformers used directly as its sentence-transformers files say."""

import asyncio
import base64

import httpx
import numpy as np
import openai
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

TEXTS = [
    "The capital of France is Paris.",
    "Paris is the largest city of France.",
    "A llama is a domesticated South American camelid.",
    "word " * 120,
    "é",
]


@pytest.fixture(scope="module")
def reference(minilm_dir):
    model = AutoModel.from_pretrained(minilm_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)

    def vectors(texts):
        result = []
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt")
            with torch.no_grad():
                states = model(**inputs).last_hidden_state[0]
            result.append(torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy())
        return np.stack(result)

    return vectors


def embed(server, texts, **more):
    return server.client.post(
        "/v1/embeddings", json={"model": server.model, "input": texts, **more}
    )


def test_a_batch_equals_each_text_alone_in_transformers(minilm, reference):
    answer = embed(minilm, TEXTS).json()
    found = np.array([item["embedding"] for item in answer["data"]])
    assert [item["index"] for item in answer["data"]] == list(range(len(TEXTS)))
    assert np.abs(found - reference(TEXTS)).max() < 1e-4
    assert answer["usage"]["prompt_tokens"] > 120


def test_a_single_text(minilm, reference):
    answer = embed(minilm, TEXTS[0]).json()
    vector = np.array(answer["data"][0]["embedding"])
    assert vector.shape == (384,)
    assert abs(np.linalg.norm(vector) - 1) < 1e-4
    assert np.abs(vector - reference(TEXTS[:1])[0]).max() < 1e-4


def test_near_meanings_are_near(minilm):
    paris, city, llama = (np.array(i["embedding"]) for i in embed(minilm, TEXTS[:3]).json()["data"])
    assert paris @ city > paris @ llama + 0.3


async def test_texts_of_different_requests_are_told_apart(minilm, reference):
    async with httpx.AsyncClient(base_url=minilm.url, timeout=60) as client:
        answers = await asyncio.gather(
            *(
                client.post("/v1/embeddings", json={"model": minilm.model, "input": text})
                for text in TEXTS * 4
            )
        )
    found = np.array([answer.json()["data"][0]["embedding"] for answer in answers])
    assert np.abs(found - np.tile(reference(TEXTS), (4, 1))).max() < 1e-4


def test_the_official_client_which_asks_for_base64(minilm, reference):
    client = openai.OpenAI(base_url=f"{minilm.url}/v1", api_key="none", max_retries=0)
    answer = client.embeddings.create(model=minilm.model, input=TEXTS)
    found = np.array([item.embedding for item in answer.data])
    client.close()
    assert np.abs(found - reference(TEXTS)).max() < 1e-4


def test_base64_holds_the_same_numbers(minilm):
    plain = embed(minilm, "a").json()["data"][0]["embedding"]
    packed = embed(minilm, "a", encoding_format="base64").json()["data"][0]["embedding"]
    numbers = np.frombuffer(base64.b64decode(packed), dtype="<f4")
    assert np.abs(numbers - np.array(plain)).max() < 1e-7


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [1, 10**6]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": "word " * 300}, "input"),
        ({"input": "a", "dimensions": 5}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({}, "input"),
    ],
)
def test_what_cannot_be_embedded_is_400(minilm, body, param):
    response = minilm.client.post("/v1/embeddings", json={"model": minilm.model, **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("batch", [False, True])
def test_inputs_may_be_token_ids(minilm, minilm_dir, reference, batch):
    ids = AutoTokenizer.from_pretrained(minilm_dir)(TEXTS).input_ids
    answer = embed(minilm, ids if batch else ids[0]).json()
    found = np.array([item["embedding"] for item in answer["data"]])
    expected = TEXTS if batch else TEXTS[:1]
    assert np.abs(found - reference(expected)).max() < 1e-4
    assert answer["usage"]["total_tokens"] == sum(map(len, ids if batch else ids[:1]))


def test_dimensions_are_what_the_model_has(minilm):
    answer = embed(minilm, "a", dimensions=384)
    assert len(answer.json()["data"][0]["embedding"]) == 384


def test_info_of_an_encoder(minilm):
    info = minilm.client.get("/info").json()
    assert (info["task"], info["max_length"], info["features"]) == ("embed", 256, {"embed": True})


def test_an_encoder_does_not_chat(minilm):
    response = minilm.chat()
    assert response.status_code == 400
    assert "/v1/embeddings" in response.json()["error"]["message"]
