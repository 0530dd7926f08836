"""Prometheus metrics, under vLLM's names where vLLM has one, so that its dashboards work here.

Knows prometheus_client and what the engine reports to an observer. Does not know requests.
"""

from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from llm_inference.engine.interface import Capacity, DeviceReport, FinishReason, Load

# vLLM's own buckets, so that quantiles of a mixed fleet can be computed together.
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
_TOKEN = (
    # Below vLLM's first bucket lies what small models reach.
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
_REQUEST = (
    # The first three are ours: queueing and prefill are over sooner than vLLM's buckets begin.
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    *(120, 240, 480, 960, 1920, 7680),
)
_SIZES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_TOKENS = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))

_QUEUE_FULL = "max_num_queued_reqs"  # vLLM's word for it
_IDLE = Load(running=0, waiting=0, cache_usage=0.0)


class Metrics:
    """All metrics of one server, in a registry of their own. It is the engine's `Observer`.

    Args:
        model_name: value of the label `model_name`.
    """

    def __init__(self, model_name: str) -> None:
        # A series of its own for each counter and histogram that nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._model = model_name
        self.load: Callable[[], Load] = lambda: _IDLE
        self.startup_seconds: Callable[[], dict[str, float]] = dict
        self._load_gauges()
        self._count()
        self._time()
        self._describe()

    def _load_gauges(self) -> None:
        def gauge(name: str, text: str, read: Callable[[], float]) -> None:
            family = Gauge(f"vllm:{name}", text, ["model_name"], registry=self.registry)
            family.labels(self._model).set_function(read)

        gauge("num_requests_running", "Sequences in the batch.", lambda: self.load().running)
        gauge("num_requests_waiting", "Sequences in the queue.", lambda: self.load().waiting)
        gauge("kv_cache_usage_perc", "Used share of the KV cache.", lambda: self.load().cache_usage)

    def _count(self) -> None:
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens read or found.")
        self._generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.")
        self._prefix_queries = self._counter(
            "vllm:prefix_cache_queries", "Prompt tokens looked up among the kept prefixes."
        )
        self._prefix_hits = self._counter(
            "vllm:prefix_cache_hits", "Prompt tokens found among the kept prefixes."
        )
        self._rejections = self._labelled_counter(
            "vllm:admission_rejections",
            "Requests refused with 429, by the bound they met.",
            "reason",
        )
        self._success = self._labelled_counter(
            "vllm:request_success", "Sequences that ended, by reason.", "finished_reason"
        )
        # Rates are right from the first event on where a series begins with 0.
        self._rejections.labels(self._model, _QUEUE_FULL)
        for reason in FinishReason:
            self._success.labels(self._model, reason.value)
        self._steps = self._labelled_counter(
            "llm_engine_steps", "Forward passes of the model, by kind.", "kind"
        )
        self._http_requests = Counter(
            "llm_http_requests",
            "Requests to the API, by route and status.",
            ["model_name", "route", "status"],
            registry=self.registry,
        )

    def _time(self) -> None:
        self._first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "From admission to the first token.", _FIRST_TOKEN
        )
        self._inter_token = self._histogram(
            "vllm:inter_token_latency_seconds", "Between tokens of a sequence.", _TOKEN
        )
        # The name it had before; dashboards know both.
        self.registry.register(
            _Renamed(
                self.registry,
                "vllm:inter_token_latency_seconds",
                "vllm:time_per_output_token_seconds",
            )
        )
        self._per_output_token = self._histogram(
            "vllm:request_time_per_output_token_seconds",
            "Mean of a sequence's times between tokens.",
            _TOKEN,
        )
        self._end_to_end = self._histogram(
            "vllm:e2e_request_latency_seconds", "From admission to the last token.", _REQUEST
        )
        self._queue = self._histogram(
            "vllm:request_queue_time_seconds", "From admission to prefill.", _REQUEST
        )
        self._prefill = self._histogram(
            "vllm:request_prefill_time_seconds", "From prefill to the first token.", _REQUEST
        )
        self._decode = self._histogram(
            "vllm:request_decode_time_seconds", "From the first token to the last.", _REQUEST
        )
        self._request_prompt = self._histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a sequence.", _TOKENS
        )
        self._request_generation = self._histogram(
            "vllm:request_generation_tokens", "Tokens generated by a sequence.", _TOKENS
        )
        self._iteration_tokens = self._histogram(
            "vllm:iteration_tokens_total", "Tokens in one forward pass.", _SIZES
        )

    def _describe(self) -> None:
        self._device = Gauge(
            "llm_device_info",
            "What the model runs on.",
            ["model_name", "device", "name", "dtype", "threads", "quantization"],
            registry=self.registry,
        )
        self._cache = Gauge(
            "vllm:cache_config_info",
            "The KV cache: so many blocks of so many tokens; a block is a sequence's slot.",
            ["model_name", "engine", "block_size", "num_gpu_blocks", "cache_dtype"],
            registry=self.registry,
        )
        self.registry.register(_StartupCollector(self))

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def describe_device(self, device: DeviceReport, quantization: str) -> None:
        """Publish what the model runs on and how its weights are held."""
        self._device.labels(
            self._model,
            device.type,
            device.name,
            device.dtype,
            str(device.threads),
            quantization,
        ).set(1)

    def describe_cache(self, capacity: Capacity, dtype: str) -> None:
        """Publish what the KV cache holds."""
        self._cache.labels(
            self._model, "0", str(capacity.max_length), str(capacity.max_concurrency), dtype
        ).set(1)

    def rejected(self, reason: str = _QUEUE_FULL) -> None:
        """A request was refused because the queue is full."""
        self._rejections.labels(self._model, reason).inc()

    def answered(self, route: str, status: int) -> None:
        """A request to the API was answered, or its client went away: 499."""
        self._http_requests.labels(self._model, route, str(status)).inc()

    # What follows is the engine's Observer.

    def queued(self, seconds: float) -> None:
        """A sequence waited this long before its prefill began."""
        self._queue.observe(seconds)

    def prefix(self, hit: int, queried: int) -> None:
        """Of `queried` prompt tokens of a sequence, `hit` were in the cache already."""
        self._prefix_queries.inc(queried)
        self._prefix_hits.inc(hit)
        # vLLM counts what a prompt has, wherever it comes from.
        self._prompt_tokens.inc(hit)

    def first_token(self, seconds: float) -> None:
        """A sequence got its first token this long after it was submitted."""
        self._first_token.observe(seconds)
        self._generation_tokens.inc()

    def prefilled(self, seconds: float) -> None:
        """A sequence got its first token this long after its prefill began."""
        self._prefill.observe(seconds)

    def inter_token(self, seconds: float) -> None:
        """A sequence got a further token this long after the one before."""
        self._inter_token.observe(seconds)
        self._generation_tokens.inc()

    def step(self, kind: str, *, sequences: int, tokens: int) -> None:  # noqa: ARG002
        """A forward pass of `kind` ran over so many tokens."""
        self._steps.labels(self._model, kind).inc()
        self._iteration_tokens.observe(tokens)
        if kind != "decode":
            self._prompt_tokens.inc(tokens)

    def decoded(self, seconds: float, *, tokens: int) -> None:
        """A sequence ended well, this long after its first token, `tokens` later."""
        self._decode.observe(seconds)
        if tokens:
            self._per_output_token.observe(seconds / tokens)

    def finished(self, reason: str, *, prompt: int, generated: int, seconds: float) -> None:
        """A sequence ended."""
        self._success.labels(self._model, reason).inc()
        self._end_to_end.observe(seconds)
        self._request_prompt.observe(prompt)
        self._request_generation.observe(generated)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ["model_name"], registry=self.registry).labels(self._model)

    def _labelled_counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(name, text, ["model_name", label], registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            name, text, ["model_name"], buckets=buckets, registry=self.registry
        ).labels(self._model)


class _Renamed(Collector):
    """A metric once more, under an older name; costs nothing but when it is scraped."""

    def __init__(self, registry: CollectorRegistry, name: str, old: str) -> None:
        self._registry, self._name, self._old = registry, name, old

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: what it repeats may be registered later."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The metric's samples."""
        for family in self._registry.restricted_registry(self._names()).collect():
            copy = Metric(self._old, family.documentation, family.type)
            copy.samples = [
                Sample(sample.name.replace(self._name, self._old), *sample[1:])
                for sample in family.samples
            ]
            yield copy

    def _names(self) -> list[str]:
        return [self._name + suffix for suffix in ("_bucket", "_sum", "_count")]


class _StartupCollector(Collector):
    """Seconds each phase of start-up took, read when scraped."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        """One sample for each phase that is over."""
        family = GaugeMetricFamily(
            "llm_startup_phase_seconds", "Seconds a phase of start-up took.", labels=["phase"]
        )
        for phase, seconds in self._metrics.startup_seconds().items():
            family.add_metric([phase], seconds)
        return [family]
