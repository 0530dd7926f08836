"""Requests made up from the published description, sent to real models: none may fail inside."""

import re
from collections import Counter

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from llm_inference.app import create_app
from llm_inference.health import Health
from llm_inference.serving import Serving
from llm_inference.settings import Settings

LONGEST = 4
"""Tokens of an answer: what is asked for counts here, not how much comes."""
ANSWERED = Counter()
"""How many requests to a path were answered with 200."""
FAILED_WITHIN = re.compile(r'"type": ?"(server_error|service_unavailable|timeout)"')


def description():
    """As any server publishes it, whatever it serves."""
    serving = Serving(Settings(), Health(), load=lambda _: None)
    return create_app(serving).openapi()


described = schemathesis.openapi.from_dict(description())
OPERATIONS = [found.ok() for found in described.get_all_operations()]


def bound(body):
    """Have a request's answer be short."""
    bounds = {"max_tokens", "max_completion_tokens"} & body.keys()
    for name in bounds or {"max_tokens"}:
        asked = body.get(name)
        if asked is None or (isinstance(asked, int | float) and asked > LONGEST):
            body[name] = LONGEST


# Not its own parametrize: that gives all of them one name, of which pytest-xdist runs the first.
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.label)
@hypothesis.given(data=hypothesis.strategies.data())
@hypothesis.settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    derandomize=True,
    database=None,
)
def test_no_request_of_the_description_fails_inside(operation, data, smollm2, minilm):
    case = data.draw(operation.as_strategy())
    path = case.operation.path
    server = minilm if path == "/v1/embeddings" else smollm2
    if isinstance(case.body, dict):
        turn = len(str(case.body)) % 4
        # Most of them as for the served model, or all would end with its name; some with a plain
        # conversation, or with hardly any would a model get to what else they ask for.
        if turn:
            case.body["model"] = server.model
        if turn > 1 and "messages" in case.body:
            case.body["messages"] = [{"role": "user", "content": "What is a llama?"}]
        if path.endswith("/completions"):
            bound(case.body)
    failed = server.metric("vllm:request_success_total", finished_reason="error")
    response = case.call_and_validate(
        base_url=server.url,
        timeout=120,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )
    ANSWERED[path] += response.status_code == 200
    # A stream has begun with 200 when something fails in it.
    assert not FAILED_WITHIN.search(response.text)
    assert server.metric("vllm:request_success_total", finished_reason="error") == failed


def test_the_description_is_the_published_one(smollm2, minilm):
    assert [each.client.get("/openapi.json").json() for each in (smollm2, minilm)] == [
        description()
    ] * 2


def test_after_all_of_them_it_still_answers(smollm2):
    answer = smollm2.chat(max_tokens=16)
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
def test_some_of_them_came_as_far_as_the_model(path):
    if not ANSWERED:
        pytest.skip("none was sent in this run")
    assert ANSWERED[path] > 0, ANSWERED
