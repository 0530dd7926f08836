"""What goes over the wire: method, path, content type, and what an answer becomes."""

import json

import pytest
import yaml
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from llm_operator.kube import ApiError, Kube
from llm_operator.resources import DEPLOYMENT, EVENT, LLM_DEPLOYMENT, SERVICE

MANIFEST = {"metadata": {"namespace": "models", "name": "smollm2"}, "spec": {"replicas": 0}}


class Server:
    """Answers every request the same way and remembers it."""

    def __init__(self):
        self.status, self.answer = 200, json.dumps({"metadata": {"name": "smollm2"}})
        self.requests = []
        self.tokens = []
        self.answers = []
        self.recovers_after = None

    async def handle(self, request):
        body = await request.text()
        self.tokens.append(request.headers.get("Authorization"))
        self.requests.append(
            (request.method, request.path, dict(request.query), request.content_type, body)
        )
        if self.answers:
            self.answer = self.answers.pop(0)
        if self.recovers_after and len(self.requests) > self.recovers_after:
            self.status = 200
        return web.Response(status=self.status, text=self.answer, content_type="application/json")

    def refuse(self, status, **answer):
        self.status, self.answer = status, json.dumps(answer)


@pytest.fixture
async def server():
    return Server()


@pytest.fixture
async def kube(server):
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    configuration = Configuration(host=f"http://127.0.0.1:{port}")
    configuration.api_key["BearerToken"] = "Bearer secret"
    client = Kube(ApiClient(configuration))
    yield client
    await client.close()
    await runner.cleanup()


async def test_apply_is_server_side_and_strict(kube, server):
    answer = await kube.apply(DEPLOYMENT, MANIFEST, force=True)
    ((method, path, query, content_type, body),) = server.requests
    assert (method, path) == ("PATCH", "/apis/apps/v1/namespaces/models/deployments/smollm2")
    assert content_type == "application/apply-patch+yaml"
    assert query == {"fieldManager": "llm-operator", "fieldValidation": "Strict", "force": "true"}
    assert json.loads(body) == MANIFEST
    assert answer == {"metadata": {"name": "smollm2"}}


@pytest.mark.parametrize(
    "text", ["Grüße", "\U0001f600", "a\u2028b\x85c", "\x7f\ufeff", "\\ud83d", "a\n"]
)
async def test_every_text_survives_being_applied_as_yaml(kube, server, text):
    await kube.apply(SERVICE, {**MANIFEST, "text": text}, force=True)
    ((_, _, _, _, body),) = server.requests
    assert json.loads(body)["text"] == text
    assert yaml.safe_load(body)["text"] == text


async def test_overwriting_replaces_lists_of_that_very_object(kube, server):
    await kube.overwrite(SERVICE, MANIFEST, uid="u")
    ((method, path, query, content_type, body),) = server.requests
    assert (method, path) == ("PATCH", "/api/v1/namespaces/models/services/smollm2")
    assert content_type == "application/merge-patch+json"
    assert query == {"fieldManager": "llm-operator", "fieldValidation": "Strict"}
    assert json.loads(body) == {**MANIFEST, "metadata": {**MANIFEST["metadata"], "uid": "u"}}


async def test_a_new_object_is_applied_without_force(kube, server):
    await kube.apply(SERVICE, MANIFEST, force=False)
    ((_, path, query, _, _),) = server.requests
    assert path == "/api/v1/namespaces/models/services/smollm2"
    assert query["force"] == "false"


async def test_status_is_applied_to_the_object_of_that_uid(kube, server):
    metadata = {"namespace": "models", "name": "smollm2", "uid": "u"}
    await kube.apply_status(LLM_DEPLOYMENT, metadata, {"replicas": 0, "conditions": []})
    ((method, path, _, content_type, body),) = server.requests
    assert method == "PATCH"
    assert path == (
        "/apis/llm-operator.dev/v1alpha1/namespaces/models/llmdeployments/smollm2/status"
    )
    assert content_type == "application/apply-patch+yaml"
    assert json.loads(body) == {
        "apiVersion": "llm-operator.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": metadata,
        "status": {"replicas": 0, "conditions": []},
    }


async def test_each_request_bears_the_token_of_its_time(kube, server):
    configuration = kube._client.configuration

    async def renewed(configuration):
        configuration.api_key["BearerToken"] = "Bearer renewed"

    await kube.get(DEPLOYMENT, "models", "smollm2")
    configuration.refresh_api_key_hook = renewed
    await kube.get(DEPLOYMENT, "models", "smollm2")
    assert server.tokens == ["Bearer secret", "Bearer renewed"]


async def test_events_are_created(kube, server):
    await kube.create(EVENT, {"metadata": {"namespace": "models"}})
    ((method, path, _, content_type, _),) = server.requests
    assert (method, path) == ("POST", "/api/v1/namespaces/models/events")
    assert content_type == "application/json"


async def test_lists_of_one_namespace_and_of_all(kube, server):
    server.answer = json.dumps({"metadata": {"resourceVersion": "7"}, "items": [{"a": 1}]})
    assert await kube.list_all(LLM_DEPLOYMENT, "models") == (
        [{"apiVersion": "llm-operator.dev/v1alpha1", "kind": "LLMDeployment", "a": 1}],
        7,
    )
    await kube.list_all(SERVICE, selector="a.b/c=d,e in (f, g)")
    assert [(path, query) for _, path, query, _, _ in server.requests] == [
        ("/apis/llm-operator.dev/v1alpha1/namespaces/models/llmdeployments", {"limit": "250"}),
        ("/api/v1/services", {"labelSelector": "a.b/c=d,e in (f, g)", "limit": "250"}),
    ]


async def test_a_long_list_is_asked_for_page_by_page(kube, server):
    pages = [
        {"metadata": {"resourceVersion": "7", "continue": "more"}, "items": [{"a": 1}, {"a": 2}]},
        {"metadata": {"resourceVersion": "7", "continue": ""}, "items": [{"a": 3}]},
    ]
    server.answers = [json.dumps(page) for page in pages]
    kept = await kube.list_all(SERVICE, "models", keep=lambda item: {"b": item["a"], **item})
    service = {"apiVersion": "v1", "kind": "Service"}
    assert kept == ([{"a": a, "b": a} | service for a in (1, 2, 3)], 7)
    assert [query for _, _, query, _, _ in server.requests] == [
        {"limit": "250"},
        {"limit": "250", "continue": "more"},
    ]


async def test_what_is_not_there_is_none(kube, server):
    server.refuse(404, reason="NotFound", message="not found")
    assert await kube.get(DEPLOYMENT, "models", "smollm2") is None


async def test_a_refusal_keeps_the_servers_words(kube, server):
    server.refuse(403, reason="Forbidden", message="exceeded quota: q")
    with pytest.raises(ApiError) as caught:
        await kube.get(DEPLOYMENT, "models", "smollm2")
    assert (caught.value.status, caught.value.reason) == (403, "Forbidden")
    assert caught.value.message == "exceeded quota: q"


async def test_an_answer_that_is_no_json_is_still_an_answer(kube, server):
    server.status, server.answer = 503, "upstream is gone"
    with pytest.raises(ApiError, match="upstream is gone"):
        await kube.get(DEPLOYMENT, "models", "smollm2")


async def test_no_answer_is_an_error_of_its_own():
    kube = Kube(ApiClient(Configuration(host="http://127.0.0.1:9")))
    with pytest.raises(ApiError) as caught:
        await kube.get(DEPLOYMENT, "models", "smollm2")
    assert caught.value.status == 0
    assert "no answer from the API server" in caught.value.message
    await kube.close()


async def test_waits_until_the_api_is_served(kube, server, caplog):
    server.refuse(404, reason="NotFound", message="the server could not find it")
    waiting = kube.wait_until_served("llm-operator.dev/v1alpha1", interval=0.001)
    server.recovers_after = 3
    await waiting
    assert len(server.requests) == 4
    assert caplog.text.count("waiting for the API llm-operator.dev/v1alpha1") == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_refusal_that_passes_is_not_the_last_word(server, kube, status):
    server.refuse(status, message="no time")
    server.recovers_after = 2
    await kube.apply(DEPLOYMENT, MANIFEST, force=True)
    assert len(server.requests) == 3


async def test_a_refusal_that_does_not_pass_becomes_an_error(server, kube):
    server.refuse(503, reason="ServiceUnavailable", message="no time")
    with pytest.raises(ApiError) as caught:
        await kube.get(DEPLOYMENT, "models", "smollm2")
    assert (caught.value.status, caught.value.message) == (503, "no time")
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("status", "message"), [(422, "Invalid value"), (500, ".spec.x: field not declared in schema")]
)
async def test_the_requests_own_fault_is_not_tried_again(server, kube, status, message):
    server.refuse(status, message=message)
    with pytest.raises(ApiError):
        await kube.apply(DEPLOYMENT, MANIFEST, force=True)
    assert len(server.requests) == 1
