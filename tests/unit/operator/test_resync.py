import asyncio

import pytest

from llm_operator import resync
from llm_operator.cache import Cache
from llm_operator.kube import ApiError
from llm_operator.resources import LLM_DEPLOYMENT, NODE, OWNED, POD, POD_MONITOR, SCALED_OBJECT
from llm_operator.resync import MANAGED, Resync
from llm_operator.settings import Settings


def body(name, version=1):
    return {"metadata": {"namespace": "models", "name": name, "resourceVersion": str(version)}}


class FakeKube:
    def __init__(self):
        self.objects = {LLM_DEPLOYMENT: [body("a"), body("b")]}
        self.asked = []
        self.refusals = 0

    async def serves(self, resource):
        return resource is POD_MONITOR

    async def list_all(self, resource, namespace, *, selector, keep):
        await asyncio.sleep(0)
        self.asked.append((resource, namespace, selector))
        if self.refusals:
            self.refusals -= 1
            raise ApiError(429, "TooManyRequests", "storage is (re)initializing")
        return [keep(each) for each in self.objects.get(resource, [])], 10


@pytest.fixture
def kube():
    return FakeKube()


@pytest.fixture
def added():
    return []


@pytest.fixture
def make(kube, added):
    def make(**settings):
        return Resync(kube=kube, cache=Cache(), add=added.append, settings=Settings(**settings))

    return make


async def test_every_kind_is_listed_by_what_is_ours(make, kube):
    await make().everything()
    owned = [resource for resource in OWNED if resource is not SCALED_OBJECT]
    assert kube.asked == [
        (LLM_DEPLOYMENT, "", ""),
        *((resource, "", MANAGED) for resource in owned),
        (POD, "", MANAGED),
        (NODE, "", ""),
    ]


async def test_only_what_may_be_looked_at_is_listed(make, kube):
    await make(watch_namespaces=("x", "y"), watch_nodes=False).everything()
    assert {namespace for _, namespace, _ in kube.asked} == {"x", "y"}
    assert NODE not in {resource for resource, _, _ in kube.asked}


async def test_nothing_is_looked_at_before_the_last_list_is_in(make, kube, added):
    task = asyncio.create_task(make().everything())
    while not (kube.asked and kube.asked[-1][0] is NODE):
        assert not task.done()
        assert not added
        await asyncio.sleep(0)
    await task
    assert sorted(added) == [("models", "a"), ("models", "b")]


async def test_an_llmdeployment_that_is_gone_is_looked_at_a_last_time(make, kube, added):
    lists = make()
    await lists.everything()
    added.clear()
    del kube.objects[LLM_DEPLOYMENT][1]
    await lists.everything()
    assert sorted(added) == [("models", "a"), ("models", "b")]
    added.clear()
    await lists.everything()
    assert added == [("models", "a")]


async def test_the_first_list_is_tried_until_it_is_answered(make, kube, added, monkeypatch, caplog):
    monkeypatch.setattr(resync, "_RETRY_SECONDS", 0.001)
    kube.refusals = 2
    await make().first()
    assert len(added) == 2
    assert "cannot start yet" in caplog.text


async def test_a_refused_list_does_not_end_the_looking(make, kube, monkeypatch, caplog):
    monkeypatch.setattr(resync, "_SECOND_SECONDS", 0)
    kube.refusals = 1
    lists = make()
    lists._settings = Settings.model_construct(
        watch_namespaces=(), watch_nodes=True, resync_seconds=0.001
    )
    looked = asyncio.Event()
    lists._add = lambda key: looked.set()
    task = asyncio.create_task(lists.run())
    await asyncio.wait_for(looked.wait(), timeout=5)
    task.cancel()
    assert "resync failed, watches go on" in caplog.text
