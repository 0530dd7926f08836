"""Prometheus metrics, under vLLM's names where vLLM has one, so that its dashboards work here.

Knows prometheus_client and what the engine reports to an observer. Does not know requests.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llm_inference.engine.interface import DeviceReport, Load

_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

_IDLE = Load(running=0, waiting=0, cache_usage=0.0)


class Metrics:
    """All metrics of one server, in a registry of their own.

    Args:
        model_name: value of the label `model_name`.
    """

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model_name
        self.load: Callable[[], Load] = lambda: _IDLE
        self.startup_seconds: Callable[[], dict[str, float]] = dict
        self._load_gauges()
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens read.")
        self._generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.")
        self._rejections = self._counter("vllm:admission_rejections", "Requests refused with 429.")
        self._success = Counter(
            "vllm:request_success",
            "Sequences that ended, by reason.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._steps = Counter(
            "llm_engine_steps",
            "Forward passes of the model, by kind.",
            ["model_name", "kind"],
            registry=self.registry,
        )
        self._first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "From admission to the first token.", _LATENCY
        )
        self._inter_token = self._histogram(
            "vllm:inter_token_latency_seconds", "Between tokens of a sequence.", _TOKEN
        )
        self._end_to_end = self._histogram(
            "vllm:e2e_request_latency_seconds", "From admission to the last token.", _LATENCY
        )
        self._queue_time = self._histogram(
            "vllm:request_queue_time_seconds", "From admission to prefill.", _LATENCY
        )
        self._iteration_tokens = self._histogram(
            "vllm:iteration_tokens_total", "Tokens in one forward pass.", _SIZES
        )
        self._device = Gauge(
            "llm_device_info",
            "What the model runs on.",
            ["model_name", "device", "name", "dtype", "threads", "quantization"],
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

    def rejected(self) -> None:
        """A request was refused because the queue is full."""
        self._rejections.inc()

    # What follows is the engine's Observer.

    def queued(self, seconds: float) -> None:
        """A sequence waited this long before its prefill began."""
        self._queue_time.observe(seconds)

    def first_token(self, seconds: float) -> None:
        """A sequence got its first token this long after it was submitted."""
        self._first_token.observe(seconds)
        self._generation_tokens.inc()

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

    def finished(
        self,
        reason: str,
        *,
        prompt: int,  # noqa: ARG002
        generated: int,  # noqa: ARG002
        seconds: float,
    ) -> None:
        """A sequence ended."""
        self._success.labels(self._model, reason).inc()
        self._end_to_end.observe(seconds)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ["model_name"], registry=self.registry).labels(self._model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            name, text, ["model_name"], buckets=buckets, registry=self.registry
        ).labels(self._model)

    def _load_gauges(self) -> None:
        def gauge(name: str, text: str, read: Callable[[], float]) -> None:
            family = Gauge(f"vllm:{name}", text, ["model_name"], registry=self.registry)
            family.labels(self._model).set_function(read)

        gauge("num_requests_running", "Sequences in the batch.", lambda: self.load().running)
        gauge("num_requests_waiting", "Sequences in the queue.", lambda: self.load().waiting)
        gauge("kv_cache_usage_perc", "Used share of the KV cache.", lambda: self.load().cache_usage)


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
