"""The load generator against the real server."""

from bench.serving import memory
from bench.serving.figures import Objective
from bench.serving.load import Work, closed_loop, open_loop
from bench.serving.prompts import SHORT
from bench.serving.scenarios import TEMPLATE_TOKENS
from bench.serving.stream import Target, ask


async def test_a_closed_loop_sees_what_the_server_counts(smollm2):
    before = smollm2.metric("vllm:generation_tokens_total")
    work = Work(requests=4, tokens=5, warm_up=1)
    run = await closed_loop(Target(smollm2.url, smollm2.model), work, 2)
    summary = run.summary(Objective(ttft=600, itl=600))
    assert (summary.requests, summary.failures, summary.goodput) == (4, {}, 1)
    assert summary.tokens == 20
    assert smollm2.metric("vllm:generation_tokens_total") - before == 25
    assert summary.prompt_tokens == SHORT + TEMPLATE_TOKENS
    assert 0 < summary.ttft.p50 <= summary.e2e.p50 <= summary.seconds
    assert summary.throughput < summary.decoding


async def test_an_open_loop_is_answered(smollm2):
    run = await open_loop(Target(smollm2.url, smollm2.model), Work(requests=3, tokens=2), 50)
    assert run.summary().failures == {}
    assert run.summary().tokens == 6


async def test_a_completion_is_streamed_too(smollm2):
    target = Target(smollm2.url, smollm2.model, "/v1/completions")
    sample = await ask(target, "Once upon a time", 4)
    assert (sample.failure, sample.tokens) == (None, 4)


async def test_a_refusal_of_the_server_is_a_failure(smollm2):
    sample = await ask(Target(smollm2.url, "another"), "Hello", 4)
    assert sample.failure is not None
    assert sample.failure.startswith("status 404")


def test_the_memory_of_the_server_holds_its_weights(smollm2, smollm2_dir):
    weights = sum(file.stat().st_size for file in smollm2_dir.glob("*.safetensors"))
    assert memory.of_tree(smollm2.process.pid).total > weights
