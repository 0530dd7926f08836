"""OpenTelemetry traces of requests, by the semantic conventions for generative AI.

Knows records of requests and OpenTelemetry's SDK, which takes half a second to import: nothing
imports this module but where an endpoint for traces is set. Knows no HTTP and no text of prompts
or answers. Spans are made once a request is over, so that none costs a token anything, and are
sent by a thread of the SDK's: a collector that is slow or gone is a warning in the log.
"""

import logging
import os
from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, format_trace_id
from opentelemetry.trace import set_span_in_context as inside
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from llm_inference import __version__
from llm_inference.record import Record

logger = logging.getLogger(__name__)

_NAME = "llm-inference"
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_FIRST_SERVER_ERROR = 500
_Value = str | int | float | Sequence[str]


class Traces:
    """Sends a trace of each request to where OpenTelemetry's own variables say.

    Args:
        model: name of the served model.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        # What the environment says of the service comes first; this is what it is called without.
        os.environ.setdefault("OTEL_SERVICE_NAME", _NAME)
        resource = Resource.create({"service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(_NAME, __version__)
        self._propagator = TraceContextTextMapPropagator()

    def report(self, record: Record) -> str | None:
        """Make the spans of a request that is over; the id of its trace."""
        try:
            return self._report(record)
        except Exception:
            # A trace is never worth a request.
            logger.exception("a request could not be traced")
            return None

    def flush(self, seconds: float) -> None:
        """Send what has not been sent yet, for so many seconds at most."""
        self._provider.force_flush(int(1000 * seconds))

    def _report(self, record: Record) -> str:
        carrier = {"traceparent": record.traceparent, "tracestate": record.tracestate}
        operation = _OPERATIONS.get(record.route)
        span = self._tracer.start_span(
            f"{operation} {self._model}" if operation else f"{record.method} {record.route}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=self._attributes(record, operation),
            start_time=record.started_ns,
        )
        if span.is_recording():
            self._phases(record, inside(span))
            if record.status >= _FIRST_SERVER_ERROR:
                span.set_status(StatusCode.ERROR)
                span.set_attribute("error.type", str(record.status))
        span.end(_at(record, record.ended))
        return format_trace_id(span.get_span_context().trace_id)

    def _phases(self, record: Record, context: Context) -> None:
        """Spans for waiting, reading the prompt and generating."""
        if record.submitted is None or record.waited is None or record.first_token is None:
            return
        begun = min(record.submitted + record.waited, record.first_token)
        bounds = (record.submitted, begun, record.first_token, record.ended)
        for index, name in enumerate(("queue", "prefill", "decode")):
            span: Span = self._tracer.start_span(
                name, context=context, start_time=_at(record, bounds[index])
            )
            span.end(_at(record, bounds[index + 1]))

    def _attributes(self, record: Record, operation: str | None) -> Mapping[str, _Value]:
        values: dict[str, _Value | None] = {
            "http.request.method": record.method,
            "http.route": record.route,
            "http.response.status_code": record.status,
            "http.response.header.x-request-id": [record.request_id],
            "enduser.pseudo.id": record.client or None,
        }
        if operation is not None:
            values |= {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": _NAME,
                "gen_ai.request.model": self._model,
                "gen_ai.response.model": self._model,
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.output_tokens": record.completion_tokens,
                "gen_ai.response.finish_reasons": record.reasons or None,
                "gen_ai.response.time_to_first_chunk": record.time_to_first_token,
                **_parameters(record),
            }
        return {name: value for name, value in values.items() if value is not None}


def _parameters(record: Record) -> Mapping[str, _Value | None]:
    """What was asked of the model, but for what is a client's text: stop strings, schemas."""
    if not record.asked:
        return {}
    asked = record.asked[0]
    sampling = asked.sampling
    return {
        "gen_ai.request.max_tokens": asked.max_tokens,
        "gen_ai.request.choice.count": asked.n * len(record.asked),
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k or None,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.presence_penalty": sampling.presence_penalty or None,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty or None,
    }


def _at(record: Record, moment: float) -> int:
    """Nanoseconds since 1970 of a moment of the monotonic clock."""
    return record.started_ns + round(1e9 * (moment - record.started))
