"""Traces as a collector gets them over OTLP/HTTP, and what becomes of them without one."""

import subprocess
import sys
import time

import pytest

from llm_inference.engine.interface import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
)
from llm_inference.record import Record
from llm_inference.settings import SettingsError, traces_wanted
from tests.unit.inference.collector import collector

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def sent(monkeypatch):
    with collector() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
        yield made


@pytest.fixture
def traces():
    """Opens a sender of traces and closes it after the test."""
    from llm_inference.tracing import Traces  # noqa: PLC0415 - reads the environment

    opened = []

    def begin():
        opened.append(Traces("m"))
        return opened[-1]

    yield begin
    for one in opened:
        one._provider.shutdown()


def generated(**more):
    """The record of a request that waited 1 s, read for 2 s and generated for 3 s."""
    now = time.monotonic()
    record = Record(
        request_id="r1", method="POST", route="/v1/chat/completions", client="c1", **more
    )
    record.started = now - 7
    record.asked = [
        GenerationRequest(
            prompt=(1, 2, 3),
            max_tokens=9,
            stop=("a private word",),
            sampling=SamplingParams(temperature=0.5, seed=7),
        )
    ]
    record.prompt_tokens = 3
    record.note(TokenEvent(index=0, text="a private answer", tokens=1, waited=1.0))
    record.note(TokenEvent(index=0, text="", tokens=5, finish_reason=FinishReason.STOP, waited=1.0))
    record.submitted, record.first_token, record.ended = now - 6, now - 3, now
    record.status = 200
    return record


def test_a_request_is_a_span_with_its_phases(sent, traces):
    opened = traces()
    trace_id = opened.report(generated(traceparent=f"00-{TRACE}-{PARENT}-01"))
    opened.flush(5)
    assert trace_id == TRACE
    assert {span.trace_id.hex() for span in sent.spans} == {TRACE}
    root = sent.named("chat m")
    assert root.parent_span_id.hex() == PARENT
    seconds = {}
    for name in ("queue", "prefill", "decode"):
        span = sent.named(name)
        assert span.parent_span_id == root.span_id
        seconds[name] = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert seconds == pytest.approx({"queue": 1, "prefill": 2, "decode": 3}, abs=1e-3)
    assert sent.named("decode").end_time_unix_nano == root.end_time_unix_nano
    assert root.end_time_unix_nano - root.start_time_unix_nano == pytest.approx(7e9, rel=1e-3)
    assert (
        sent.attributes("chat m").items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "m",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.max_tokens": 9,
            "gen_ai.request.seed": 7,
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 5,
            "http.route": "/v1/chat/completions",
            "http.response.status_code": 200,
            "enduser.pseudo.id": "c1",
        }.items()
    )
    attributes = sent.attributes("chat m")
    assert attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert attributes["http.response.header.x-request-id"] == ["r1"]
    assert attributes["gen_ai.response.time_to_first_chunk"] == pytest.approx(4, abs=1e-3)
    assert "private" not in str(sent.spans)
    assert sent.resources[0]["service.name"] == "llm-inference"


def test_a_caller_that_does_not_sample_is_followed(sent, traces):
    opened = traces()
    opened.report(generated(traceparent=f"00-{TRACE}-{PARENT}-00"))
    opened.report(generated())
    opened.flush(5)
    assert TRACE not in {span.trace_id.hex() for span in sent.spans}
    assert len(sent.spans) == 4


def test_a_request_that_was_refused_is_a_span_of_its_own(sent, traces):
    record = Record(request_id="r", method="GET", route="/v1/models")
    record.status, record.ended = 503, time.monotonic()
    opened = traces()
    opened.report(record)
    opened.flush(5)
    (span,) = sent.spans
    assert span.name == "GET /v1/models"
    assert span.status.code == 2
    assert sent.attributes("GET /v1/models")["error.type"] == "503"


def test_the_environment_names_the_service(sent, traces, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=p")
    opened = traces()
    opened.report(generated())
    opened.flush(5)
    assert sent.resources[0].items() >= {"service.name": "chat", "k8s.pod.name": "p"}.items()


def test_a_record_that_makes_no_sense_hurts_nobody(sent, traces, caplog):
    opened = traces()
    record = generated()
    record.ended = float("nan")
    assert opened.report(record) is None
    assert "could not be traced" in caplog.text


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_where_traces_are_wanted(environ, wanted):
    assert traces_wanted(environ) is wanted


def test_a_protocol_that_is_not_spoken_is_refused():
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_PROTOCOL='grpc'"):
        traces_wanted(environ)
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        traces_wanted({**environ, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"})


def test_without_an_endpoint_the_sdk_is_not_imported():
    code = (
        "import sys, llm_inference.server;"
        "parts = ('opentelemetry.sdk', 'opentelemetry.exporter');"
        "print([name for name in sys.modules if name.startswith(parts)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"
