import asyncio

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llm_operator.telemetry import (
    MOST_MODELS,
    OTHER_MODELS,
    Telemetry,
    WriteRefusedError,
    classify,
)


def samples(telemetry, name):
    families = text_string_to_metric_families(generate_latest(telemetry.registry).decode())
    return {
        tuple(sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def llm_deployment(ready=None, reason="", namespace="models"):
    conditions = [{"type": "Ready", "status": ready, "reason": reason}] if ready else []
    status = {"status": {"conditions": conditions}} if ready else {}
    return {"metadata": {"namespace": namespace, "name": "x"}, **status}


def test_every_name_has_the_prefix_or_is_the_processs():
    text = generate_latest(Telemetry().registry).decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert names
    assert all(name.startswith(("llm_operator_", "process_")) for name in names)
    assert not [name for name in names if name.endswith("_created")]


def test_looks_are_counted_by_outcome():
    telemetry = Telemetry()
    telemetry.reconciled("success", 0.01)
    telemetry.reconciled("waiting", 0.01)
    telemetry.reconciled("error", 0.5)
    assert samples(telemetry, "llm_operator_reconciles_total") == {
        ("success",): 1,
        ("waiting",): 1,
        ("error",): 1,
    }
    assert samples(telemetry, "llm_operator_reconcile_errors_total") == {(): 1}
    assert samples(telemetry, "llm_operator_reconcile_duration_seconds_count") == {(): 3}


def test_llmdeployments_are_counted_as_they_are_now():
    known = [
        llm_deployment("True", "ModelServing"),
        llm_deployment("True", "ModelServing"),
        llm_deployment("False", "ModelLoading", namespace="other"),
        llm_deployment(),
    ]
    telemetry = Telemetry(llm_deployments=lambda: known)
    assert samples(telemetry, "llm_operator_llmdeployments") == {
        ("models", "True", "ModelServing"): 2,
        ("other", "False", "ModelLoading"): 1,
        ("models", "Unknown", ""): 1,
    }
    known.clear()
    assert samples(telemetry, "llm_operator_llmdeployments") == {}


def test_the_queue_and_the_leader_are_looked_up():
    telemetry = Telemetry(queue=lambda: (3, 2, 1), leads=lambda: True)
    assert samples(telemetry, "llm_operator_queue_depth") == {(): 3}
    assert samples(telemetry, "llm_operator_queue_running") == {(): 2}
    assert samples(telemetry, "llm_operator_queue_delayed") == {(): 1}
    assert samples(telemetry, "llm_operator_leader") == {(): 1}


def test_there_is_an_end_to_the_models_that_have_a_histogram():
    telemetry = Telemetry()
    for number in range(MOST_MODELS + 20):
        telemetry.observe_cold_start(f"org/model-{number}", "cpu", 30)
    telemetry.observe_cold_start("org/model-0", "cpu", 40)
    telemetry.observe_cold_start("org/model-0", "gpu", 40)
    counts = samples(telemetry, "llm_operator_cold_start_seconds_count")
    assert len(counts) == MOST_MODELS + 2
    assert counts["org/model-0", "cpu"] == 2
    assert counts["org/model-0", "gpu"] == 1
    assert counts[OTHER_MODELS, "cpu"] == 20


APPLY = {"fieldManager": "llm-operator"}
CR = "/apis/llm-operator.dev/v1alpha1"


@pytest.mark.parametrize(
    ("method", "path", "query", "verb", "resource"),
    [
        ("GET", f"{CR}/llmdeployments", {}, "list", "llmdeployments"),
        ("GET", f"{CR}/namespaces/a/llmdeployments", {}, "list", "llmdeployments"),
        ("GET", "/api/v1/pods", {"watch": "true"}, "watch", "pods"),
        ("GET", "/api/v1/namespaces/a/services/namespaces", {}, "get", "services"),
        ("PATCH", "/apis/apps/v1/namespaces/a/deployments/b", APPLY, "apply", "deployments"),
        (
            *("PATCH", f"{CR}/namespaces/a/llmdeployments/b/status"),
            *(APPLY, "apply", "llmdeployments/status"),
        ),
        ("POST", "/api/v1/namespaces/a/events", {}, "create", "events"),
        (
            *("PUT", "/apis/coordination.k8s.io/v1/namespaces/a/leases/b"),
            *({}, "update", "leases"),
        ),
        ("DELETE", "/api/v1/namespaces/a/services/b", {}, "delete", "services"),
        ("GET", "/apis/llm-operator.dev/v1alpha1", {}, "get", ""),
    ],
)
def test_requests_are_named_as_the_api_server_names_them(method, path, query, verb, resource):
    assert classify(method, path, query) == (verb, resource)


@pytest.fixture
async def server():
    """Answers reads with 200 and writes with 409. Gives its address and the methods it saw."""
    seen = []

    async def answer(request):
        seen.append(request.method)
        if request.path == "/slow":
            await asyncio.sleep(0.1)
        return web.Response(status=200 if request.method == "GET" else 409)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    await runner.cleanup()


async def test_requests_are_counted_as_they_are_answered(server):
    url, _ = server
    telemetry = Telemetry()
    async with aiohttp.ClientSession(trace_configs=[telemetry.trace()]) as session:
        async with session.get(f"{url}/api/v1/pods"):
            pass
        async with session.post(f"{url}/api/v1/namespaces/a/events"):
            pass
        with pytest.raises(aiohttp.ClientError):
            await session.get("http://127.0.0.1:9/api/v1/nodes")
    assert samples(telemetry, "llm_operator_api_requests_total") == {
        ("2xx", "pods", "list"): 1,
        ("4xx", "events", "create"): 1,
        ("none", "nodes", "list"): 1,
    }
    assert samples(telemetry, "llm_operator_api_request_duration_seconds_count") == {
        ("list",): 2,
        ("create",): 1,
    }


@pytest.mark.parametrize("connected_before", [False, True])
async def test_a_write_is_refused_and_never_sent_once_another_may_lead(server, connected_before):
    url, seen = server
    trace = Telemetry().trace(lambda: "this process does not lead")
    async with aiohttp.ClientSession(trace_configs=[trace]) as session:
        if connected_before:
            async with session.get(url):
                pass
        with pytest.raises(WriteRefusedError, match="does not lead"):
            await session.patch(f"{url}/api/v1/namespaces/a/services/b")
        async with session.get(url):
            pass
    assert "PATCH" not in seen


async def test_a_write_that_waited_for_a_connection_is_judged_when_it_gets_one(server):
    url, seen = server
    refusal = [None]
    trace = Telemetry().trace(lambda: refusal[0])
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(connector=connector, trace_configs=[trace]) as session:
        first = asyncio.create_task(session.get(f"{url}/slow"))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(session.patch(url))
        await asyncio.sleep(0.02)
        refusal[0] = "this process does not lead"
        await first
        with pytest.raises(WriteRefusedError):
            await second
    assert seen == ["GET"]
