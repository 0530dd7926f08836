"""Kinds that come and go with what is installed in a cluster."""

import asyncio

import pytest

from llm_operator import names
from llm_operator.cache import Cache
from llm_operator.kube import ApiError
from llm_operator.optional import OptionalKinds
from llm_operator.resources import SCALED_OBJECT

KEY = ("models", "smollm2")
GONE = ApiError(404, "NotFound", "the server could not find the requested resource")


def body(version=1, **labels):
    metadata = {"namespace": "models", "name": "smollm2", "resourceVersion": str(version)}
    return {"metadata": {**metadata, "labels": {names.MANAGED_BY_LABEL: names.MANAGER, **labels}}}


class FakeKube:
    """A cluster with ScaledObjects while `there`, and a watch on them."""

    def __init__(self):
        self.there = False
        self.objects = {}
        self.watch = asyncio.Queue()
        self.gets = 0

    async def serves(self, resource):
        return self.there and resource is SCALED_OBJECT

    async def list_all(self, resource, namespace, *, selector):
        if not self.there:
            raise GONE
        return list(self.objects.values()), 10

    async def watch_metadata(self, resource, namespace, *, since):
        while (event := await self.watch.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    async def get(self, resource, namespace, name):
        self.gets += 1
        return self.objects.get((namespace, name))


class World:
    def __init__(self):
        self.kube, self.cache, self.added = FakeKube(), Cache(), []
        self.optional = OptionalKinds(
            kube=self.kube, cache=self.cache, add=self.added.append, namespaces=()
        )

    @property
    def known(self):
        return self.cache.get(SCALED_OBJECT, KEY)

    async def tell(self, event):
        self.kube.watch.put_nowait(event)
        await asyncio.sleep(0.01)


@pytest.fixture
async def world(monkeypatch):
    monkeypatch.setattr("llm_operator.optional._LOOK_SECONDS", 0.001)
    monkeypatch.setattr("llm_operator.optional._RETRY_SECONDS", 0.001)
    made = World()
    task = asyncio.create_task(made.optional.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_kind_that_is_installed_later_is_followed(world):
    await asyncio.sleep(0.01)
    assert world.added == []
    world.kube.objects[KEY] = body(5)
    world.kube.there = True
    await asyncio.sleep(0.02)
    assert world.added == [KEY]
    assert world.known


async def test_changes_and_deletions_are_told_with_the_whole_object(world):
    world.kube.there = True
    world.kube.objects[KEY] = body(11) | {"status": {"conditions": []}}
    await world.tell(body(11))
    assert world.known["status"] == {"conditions": []}
    del world.kube.objects[KEY]
    await world.tell(body(12))
    assert world.known is None
    assert world.added == [KEY, KEY]


async def test_objects_of_others_are_not_read(world):
    world.kube.there = True
    await world.tell(body(11, **{names.MANAGED_BY_LABEL: "Helm"}))
    assert world.kube.gets == 0
    assert world.added == []


async def test_a_kind_that_is_removed_takes_its_objects_along(world):
    world.kube.there = True
    world.kube.objects[KEY] = body(5)
    await asyncio.sleep(0.01)
    world.kube.there = False
    await world.tell(None)
    await asyncio.sleep(0.02)
    assert world.known is None
    assert world.added == [KEY, KEY]


@pytest.mark.parametrize(
    "error", [ApiError(0, "NoAnswer", "no"), GONE, ValueError("line too long")]
)
async def test_no_error_ends_it(world, error):
    world.kube.there = True
    await world.tell(error)
    world.kube.objects[KEY] = body(11)
    await world.tell(body(11))
    assert world.known
