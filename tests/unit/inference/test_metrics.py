"""What dashboards read: the names and labels of vLLM's metrics, and that the numbers are right."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llm_inference.engine.interface import Capacity, DeviceReport
from llm_inference.metrics import Metrics

# The names that vLLM's own dashboards and the gateways that understand it ask for.
VLLM = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:admission_rejections_total",
    "vllm:iteration_tokens_total_bucket",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:time_per_output_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:request_time_per_output_token_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:request_queue_time_seconds_bucket",
    "vllm:request_prefill_time_seconds_bucket",
    "vllm:request_decode_time_seconds_bucket",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
}


@pytest.fixture
def metrics():
    return Metrics("m")


def samples(metrics):
    """Value of each sample by its name and its labels but the model's."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
            found[sample.name, *sorted(labels.items())] = sample.value
    return found


def test_vllms_names_are_there_before_the_first_request(metrics):
    assert {name for name, *_ in samples(metrics)} >= VLLM


def test_every_sample_of_vllms_says_which_model(metrics):
    lines = [line for line in metrics.render().decode().splitlines() if line.startswith("vllm:")]
    assert lines
    assert [line for line in lines if 'model_name="m"' not in line] == []


def test_the_life_of_a_sequence(metrics):
    metrics.queued(0.25)
    metrics.prefix(hit=16, queried=20)
    metrics.step("prefill", sequences=1, tokens=4)
    metrics.first_token(1.0)
    metrics.prefilled(0.75)
    for _ in range(4):
        metrics.step("decode", sequences=1, tokens=1)
        metrics.inter_token(0.5)
    metrics.decoded(2.0, tokens=4)
    metrics.finished("stop", prompt=20, generated=5, seconds=3.0)
    found = samples(metrics)
    sums = {
        name: found[f"vllm:{name}_seconds_sum",]
        for name in (
            "request_queue_time",
            "request_prefill_time",
            "request_decode_time",
            "time_to_first_token",
            "inter_token_latency",
            "time_per_output_token",
            "request_time_per_output_token",
            "e2e_request_latency",
        )
    }
    assert list(sums.values()) == [0.25, 0.75, 2.0, 1.0, 2.0, 2.0, 0.5, 3.0]
    assert found["vllm:time_per_output_token_seconds_count",] == 4
    assert found["vllm:prompt_tokens_total",] == 20
    assert found["vllm:generation_tokens_total",] == 5
    assert found["vllm:prefix_cache_hits_total",] == 16
    assert found["vllm:request_success_total", ("finished_reason", "stop")] == 1
    assert found["vllm:request_success_total", ("finished_reason", "length")] == 0
    assert found["llm_engine_steps_total", ("kind", "decode")] == 4


def test_a_sequence_of_one_token_has_no_time_between_tokens(metrics):
    metrics.decoded(0.0, tokens=0)
    found = samples(metrics)
    assert found["vllm:request_decode_time_seconds_count",] == 1
    assert found["vllm:request_time_per_output_token_seconds_count",] == 0


def test_refusals_are_counted_by_their_reason(metrics):
    metrics.rejected()
    metrics.rejected("max_num_queued_tokens")
    found = samples(metrics)
    for reason in ("max_num_queued_reqs", "max_num_queued_tokens"):
        assert found["vllm:admission_rejections_total", ("reason", reason)] == 1


def test_what_the_model_runs_on_and_what_its_cache_holds(metrics):
    metrics.startup_seconds = lambda: {"loading": 1.5}
    metrics.describe_device(
        DeviceReport(type="cpu", name="c", dtype="bfloat16", memory_bytes=1, threads=2), "int8"
    )
    metrics.describe_cache(
        Capacity(max_length=512, max_concurrency=8, max_queue=1, vocabulary=9), "bfloat16"
    )
    text = metrics.render().decode()
    assert 'llm_startup_phase_seconds{phase="loading"} 1.5' in text
    (cache,) = re.findall(r"vllm:cache_config_info\{(.*)\} 1.0", text)
    assert {'block_size="512"', 'num_gpu_blocks="8"'} <= set(cache.split(","))
    (device,) = re.findall(r"llm_device_info\{(.*)\} 1.0", text)
    assert 'quantization="int8"' in device
