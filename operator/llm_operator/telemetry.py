"""What the operator counts, and how it looks on /metrics.

Knows names, labels and bounds of the metrics. Does not know when something happens: who knows it
calls a method here. What is known of LLMDeployments is read when /metrics is asked for, so that
what was deleted is gone from there too.
"""

import asyncio
import re
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from llm_operator import __version__

Body = Mapping[str, Any]

MOST_MODELS = 100
"""Models with a cold-start histogram of their own. Users name models: there is no end to them."""
OTHER_MODELS = "other"

_RECONCILE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COLD_START_BUCKETS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)

_PATH = re.compile(
    r"^/(?:api|apis/[^/]+)/[^/]+(?:/namespaces/[^/]+)?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[a-z]+))?)?$"
)


class Telemetry:
    """The metrics of one process.

    Args:
        llm_deployments: Gives all LLMDeployments as they are known now.
        queue: Gives the number of keys that wait, run, and wait to be tried again.
        leads: Whether this process leads.
    """

    def __init__(
        self,
        *,
        llm_deployments: Callable[[], Iterable[Body]] = tuple,
        queue: Callable[[], tuple[int, int, int]] = lambda: (0, 0, 0),
        leads: Callable[[], bool] = lambda: False,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        self._models: set[str] = set()
        self._reconciles = Counter(
            "llm_operator_reconciles_total",
            "Looks at an LLMDeployment, by outcome: done, waiting for something, or failed.",
            ["outcome"],
            registry=registry,
        )
        self._errors = Counter(
            "llm_operator_reconcile_errors_total",
            "Looks that ended in an error that nobody foresaw.",
            registry=registry,
        )
        self._reconcile_seconds = Histogram(
            "llm_operator_reconcile_duration_seconds",
            "Time one look at an LLMDeployment took.",
            buckets=_RECONCILE_BUCKETS,
            registry=registry,
        )
        self._requests = Counter(
            "llm_operator_api_requests_total",
            "Requests to the API server, by verb, resource and class of the status code.",
            ["verb", "resource", "code"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "llm_operator_api_request_duration_seconds",
            "Time until the API server's answer began.",
            ["verb"],
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self._cold_start = Histogram(
            "llm_operator_cold_start_seconds",
            "Time from the making of a pod until it was ready, by model and target.",
            ["model", "target"],
            buckets=_COLD_START_BUCKETS,
            registry=registry,
        )
        leader = Gauge(
            "llm_operator_leader", "1 if this process leads, 0 if it follows.", registry=registry
        )
        leader.set_function(lambda: float(leads()))
        build = Gauge("llm_operator_build_info", "Always 1.", ["version"], registry=registry)
        build.labels(__version__).set(1)
        for outcome in ("success", "waiting", "error"):
            self._reconciles.labels(outcome)
        registry.register(_LLMDeployments(llm_deployments))
        registry.register(_Queue(queue))
        ProcessCollector(registry=registry)

    def reconciled(self, outcome: str, seconds: float) -> None:
        """One look at an LLMDeployment is over: `success`, `waiting` or `error`."""
        self._reconciles.labels(outcome).inc()
        self._reconcile_seconds.observe(seconds)
        if outcome == "error":
            self._errors.inc()

    def observe_cold_start(self, model: str, target: str, seconds: float) -> None:
        """A new pod became ready.

        Args:
            model: The model's id.
            target: What it runs on: cpu or gpu.
            seconds: From the pod's creation until it was ready.
        """
        if model not in self._models and len(self._models) >= MOST_MODELS:
            model = OTHER_MODELS
        else:
            self._models.add(model)
        self._cold_start.labels(model, target).observe(seconds)

    def trace(self, refuse_writes: Callable[[], str | None] = lambda: None) -> aiohttp.TraceConfig:
        """What counts the requests of a connection to the API server, and keeps it from writing.

        Args:
            refuse_writes: Why nothing may be written, or None. Asked when the request has its
                connection and is about to be sent: it may have waited for one, and the whole
                process may have been stopped meanwhile.
        """
        trace = aiohttp.TraceConfig()

        async def start(
            _: object, context: SimpleNamespace, request: aiohttp.TraceRequestStartParams
        ) -> None:
            context.request, context.began = request, time.perf_counter()

        async def connected(_: object, context: SimpleNamespace, __: object) -> None:
            if context.request.method != "GET" and (reason := refuse_writes()):
                raise WriteRefusedError(reason)

        async def end(
            _: object, context: SimpleNamespace, request: aiohttp.TraceRequestEndParams
        ) -> None:
            self._requested(context, f"{request.response.status // 100}xx")

        async def failed(
            _: object, context: SimpleNamespace, request: aiohttp.TraceRequestExceptionParams
        ) -> None:
            refused = isinstance(request.exception, WriteRefusedError | asyncio.CancelledError)
            if not refused:
                self._requested(context, "none")

        trace.on_request_start.append(start)
        trace.on_connection_create_end.append(connected)
        trace.on_connection_reuseconn.append(connected)
        trace.on_request_end.append(end)
        trace.on_request_exception.append(failed)
        return trace

    def _requested(self, context: SimpleNamespace, code: str) -> None:
        request = context.request
        verb, resource = classify(request.method, request.url.path, request.url.query)
        self._requests.labels(verb, resource, code).inc()
        self._request_seconds.labels(verb).observe(time.perf_counter() - context.began)


class WriteRefusedError(aiohttp.ClientError):
    """A write was not sent. The message says why."""


def classify(method: str, path: str, query: Mapping[str, str]) -> tuple[str, str]:
    """Verb and resource of a request to the API server, as its own metrics and roles name them."""
    match = _PATH.match(path)
    if match is None:
        return method.lower(), ""
    resource = match["plural"] + (f"/{match['sub']}" if match["sub"] else "")
    if method == "GET" and not match["name"]:
        return "watch" if "watch" in query else "list", resource
    if method == "PATCH":
        return "apply" if "fieldManager" in query else "patch", resource
    return {"GET": "get", "POST": "create", "PUT": "update", "DELETE": "delete"}[method], resource


class _LLMDeployments(Collector):
    """How many LLMDeployments there are, by what their status says."""

    def __init__(self, llm_deployments: Callable[[], Iterable[Body]]) -> None:
        self._llm_deployments = llm_deployments

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Count them."""
        family = GaugeMetricFamily(
            "llm_operator_llmdeployments",
            "LLMDeployments, by namespace and by status and reason of the condition Ready.",
            labels=["namespace", "ready", "reason"],
        )
        tally = Tally(map(_standing, self._llm_deployments()))
        for labels, count in sorted(tally.items()):
            family.add_metric(labels, count)
        yield family


class _Queue(Collector):
    """What the work queue holds."""

    def __init__(self, queue: Callable[[], tuple[int, int, int]]) -> None:
        self._queue = queue

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Look."""
        waiting, running, delayed = self._queue()
        for name, text, value in (
            ("depth", "LLMDeployments that wait to be looked at.", waiting),
            ("running", "LLMDeployments that are being looked at.", running),
            ("delayed", "LLMDeployments that will be looked at again after some time.", delayed),
        ):
            yield GaugeMetricFamily(f"llm_operator_queue_{name}", text, value=value)


def _standing(body: Body) -> tuple[str, str, str]:
    """Namespace, and status and reason of Ready; Unknown as long as nothing is said."""
    conditions = body.get("status", {}).get("conditions", ())
    ready: Body = next((each for each in conditions if each["type"] == "Ready"), {})
    namespace = body["metadata"].get("namespace", "")
    return namespace, ready.get("status", "Unknown"), ready.get("reason", "")
