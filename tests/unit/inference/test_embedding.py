"""Pooling as sentence-transformers does it, with a small encoder of random weights."""

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertModel

from llm_inference.engine.directory import ModelLoadError
from llm_inference.engine.embedding import Pooling, PoolingEngine, encode, read_pooling
from llm_inference.engine.interface import Capacity, EngineFullError
from llm_inference.routes.embeddings import _shortened

TEXTS = [[5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15, 16]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return BertModel(config).eval()


def pooled(states, mode):
    """One text's states, (tokens, dimensions), as sentence-transformers' Pooling makes one of."""
    return {
        "mean": states.mean(dim=0),
        "cls": states[0],
        "max": states.max(dim=0).values,
        "last": states[-1],
    }[mode]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", ["mean", "cls", "max", "last"])
def test_each_text_of_a_padded_batch_is_pooled_as_if_alone(model, mode, normalize):
    found = encode(model, Pooling(mode=mode, normalize=normalize), TEXTS, pad=0)
    for vector, ids in zip(found, TEXTS, strict=True):
        with torch.no_grad():
            expected = pooled(model(torch.tensor([ids])).last_hidden_state[0], mode)
        expected = torch.nn.functional.normalize(expected, dim=0) if normalize else expected
        assert torch.allclose(vector, expected, atol=1e-5)


def write(directory, config, pooling, *more):
    directory.joinpath("config.json").write_text(json.dumps(config))
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        *({"path": kind, "type": f"sentence_transformers.models.{kind}"} for kind in more),
    ]
    directory.joinpath("modules.json").write_text(json.dumps(modules))
    directory.joinpath("1_Pooling").mkdir()
    directory.joinpath("1_Pooling", "config.json").write_text(json.dumps(pooling))
    return read_pooling(directory)


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_the_models_files_say_how_to_pool(tmp_path, pooling, mode):
    read = write(tmp_path, {}, pooling, "Normalize")
    assert (read.mode, read.normalize, read.shorter) == (mode, True, ())


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_weightedmean_tokens": True},
        {},
    ],
)
def test_other_poolings_are_refused(tmp_path, pooling):
    with pytest.raises(ModelLoadError, match="pooling"):
        write(tmp_path, {}, pooling)


@pytest.mark.parametrize(
    ("config", "shorter"),
    [
        ({}, ()),
        ({"is_matryoshka": True}, None),
        ({"is_matryoshka": True, "matryoshka_dimensions": [256, 64]}, (64, 256)),
    ],
)
def test_a_matryoshka_model_says_how_short_its_vectors_may_be(tmp_path, config, shorter):
    assert write(tmp_path, config, {"pooling_mode": "mean"}).shorter == shorter


def test_a_shorter_vector_is_one_long():
    assert _shortened([3.0, 4.0, 12.0], 2) == [0.6, 0.8]
    assert _shortened([3.0, 4.0], None) == [3.0, 4.0]
    assert _shortened([0.0, 0.0, 1.0], 2) == [0.0, 0.0]


CAPACITY = Capacity(max_length=16, max_concurrency=4, max_queue=6, vocabulary=40)


class Observing:
    """Hears of steps, and lets none begin before it is told to."""

    def __init__(self):
        self.go_on = threading.Event()
        self.busy = threading.Event()

    def hold(self, *_):
        self.busy.set()
        assert self.go_on.wait(60)

    def step(self, *_, **__):
        pass


@pytest.fixture
async def held(model):
    """An engine that encodes as soon as its observer lets it, and that observer."""
    observer = Observing()
    hook = model.register_forward_pre_hook(observer.hold)
    engine = PoolingEngine(
        model=model, codec=None, pooling=Pooling(), pad=0, capacity=CAPACITY, observer=observer
    )
    yield engine, observer
    observer.go_on.set()
    await engine.close()
    hook.remove()


async def until(holds):
    for _ in range(60_000):
        if holds():
            return
        await asyncio.sleep(0.001)
    pytest.fail("it does not come to that")


@pytest.mark.parametrize(
    ("texts", "ended_first"),
    [
        (1, 1),  # the batch that runs: the next takes four from the queue
        (4, 1),
        (6, 3),
        (50, 3),  # no more than wait
    ],
)
async def test_a_full_queue_says_when_there_should_be_room(held, texts, ended_first):
    engine, observer = held
    requests = [asyncio.create_task(engine.embed([[5, 6]]))]
    await until(observer.busy.is_set)
    requests += [asyncio.create_task(engine.embed([[5, 6]])) for _ in range(CAPACITY.max_queue)]
    await until(lambda: engine.load().waiting == CAPACITY.max_queue)
    engine._rate.note(10)
    with pytest.raises(EngineFullError) as refusal:
        await engine.embed([[5, 6]] * texts)
    assert refusal.value.retry_after == 10 * ended_first
    observer.go_on.set()
    assert all(len(each.vectors) == 1 for each in await asyncio.gather(*requests))


async def test_each_batch_tells_what_one_text_takes(held):
    engine, observer = held
    noted, began = [], time.monotonic()
    engine._rate = SimpleNamespace(note=noted.append)
    observer.go_on.set()
    await engine.embed([[5, 6]] * 3)
    await engine.close()
    assert len(noted) == 1
    assert 0 < noted[0] * 3 <= time.monotonic() - began
