"""Who is looked at when a Secret or ConfigMap changes, and how little of it is read."""

import asyncio
import itertools

import pytest

from llm_operator.configs import Configs
from llm_operator.kube import ApiError
from llm_operator.references import Reference
from llm_operator.resources import CONFIG_MAP, SECRET

KEY = ("models", "smollm2")
OTHER = ("models", "other")
TOKEN = Reference("Secret", "s", "token")
MAP = Reference("ConfigMap", "c", None)


class FakeKube:
    """Secrets and ConfigMaps with watches on them."""

    def __init__(self):
        self.objects = {SECRET: {}, CONFIG_MAP: {}}
        self.versions = itertools.count(100)
        self.watches = []
        self.reads = []
        self.lists = []
        self.error = None

    async def get(self, resource, namespace, name):
        if self.error:
            raise self.error
        self.reads.append((resource.kind, namespace, name))
        return self.objects[resource].get((namespace, name))

    async def list_all(self, resource, namespace, *, metadata_only):
        assert metadata_only
        self.lists.append((resource.kind, namespace))
        bodies = [{"metadata": body["metadata"]} for body in self.objects[resource].values()]
        return bodies, next(self.versions)

    async def watch_metadata(self, resource, namespace, *, since):
        events = asyncio.Queue()
        self.watches.append((resource, events))
        while (event := await events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    async def put(self, resource, name, data, *, uid="u", silently=False, namespace="models"):
        metadata = {
            "namespace": namespace,
            "name": name,
            "uid": uid,
            "resourceVersion": str(next(self.versions)),
        }
        self.objects[resource][(namespace, name)] = {"metadata": metadata, "data": data}
        if not silently:
            await self.tell(resource, {"metadata": metadata})

    async def delete(self, resource, name):
        body = self.objects[resource].pop(("models", name))
        version = str(next(self.versions))
        await self.tell(resource, {"metadata": {**body["metadata"], "resourceVersion": version}})

    async def tell(self, resource, event):
        for each, events in self.watches:
            if each is resource:
                events.put_nowait(event)
        for _ in range(5):
            await asyncio.sleep(0)


class World:
    def __init__(self):
        self.kube = FakeKube()
        self.added = []
        self.configs = Configs(kube=self.kube, namespaces=(), add=self.added.append)

    async def digest(self, *found, key=KEY, before=None):
        digest = await self.configs.digest(key, found, before=before)
        for _ in range(5):
            await asyncio.sleep(0)
        return digest


@pytest.fixture
async def world(monkeypatch):
    monkeypatch.setattr("llm_operator.configs._RETRY_SECONDS", 0)
    made = World()
    yield made
    await made.configs.close()


async def test_nobody_reads_and_nothing_is_watched(world):
    assert await world.digest() is None
    assert (world.kube.lists, world.kube.reads) == ([], [])


async def test_only_the_kinds_that_are_read_are_watched(world):
    await world.digest(MAP)
    assert world.kube.lists == [("ConfigMap", "")]


async def test_a_changed_secret_has_its_readers_looked_at_and_no_one_else(world):
    await world.kube.put(SECRET, "s", {"token": "YQ=="})
    before = await world.digest(TOKEN)
    await world.digest(MAP, key=OTHER)
    await world.kube.put(SECRET, "s", {"token": "Yg=="})
    assert world.added == [KEY]
    assert await world.digest(TOKEN) != before


async def test_what_did_not_change_is_read_once(world):
    await world.kube.put(SECRET, "s", {"token": "YQ=="})
    one = await world.digest(TOKEN)
    two = await world.digest(TOKEN)
    await world.digest(TOKEN, key=OTHER)
    assert one == two
    assert world.kube.reads == [("Secret", "models", "s")]


async def test_secrets_that_nobody_reads_are_not_fetched(world):
    await world.digest(TOKEN)
    await world.kube.put(SECRET, "other", {"token": "YQ=="})
    await world.kube.put(SECRET, "s", {"token": "YQ=="}, namespace="elsewhere")
    assert world.added == []
    assert world.kube.reads == [("Secret", "models", "s")]


async def test_a_change_of_metadata_alone_leaves_the_digest(world):
    await world.kube.put(SECRET, "s", {"token": "YQ=="})
    before = await world.digest(TOKEN)
    await world.kube.put(SECRET, "s", {"token": "YQ=="})
    assert world.added == [KEY]
    assert await world.digest(TOKEN) == before


async def test_what_is_made_later_is_taken_up(world):
    missing = await world.digest(TOKEN)
    await world.kube.put(SECRET, "s", {"token": "YQ=="})
    assert world.added == [KEY]
    assert await world.digest(TOKEN, before=missing) != missing


async def test_what_is_deleted_replaces_no_pod_until_it_is_there_again(world):
    await world.kube.put(SECRET, "s", {"token": "YQ=="})
    before = await world.digest(TOKEN)
    await world.kube.delete(SECRET, "s")
    assert world.added == [KEY]
    assert await world.digest(TOKEN, before=before) == before
    await world.kube.put(SECRET, "s", {"token": "Yg=="}, uid="u-2")
    assert await world.digest(TOKEN, before=before) not in (None, before)


async def test_what_is_optional_is_told_when_it_is_deleted(world):
    optional = Reference("Secret", "s", "token", optional=True)
    await world.kube.put(SECRET, "s", {"token": "YQ=="})
    before = await world.digest(optional)
    await world.kube.delete(SECRET, "s")
    assert await world.digest(optional, before=before) != before


@pytest.mark.parametrize(
    "end", [None, ApiError(410, "Expired", "too old")], ids=["the server ended it", "too old"]
)
async def test_what_changed_between_two_watches_is_found_by_the_list(world, end):
    await world.kube.put(SECRET, "s", {"token": "YQ=="})
    await world.digest(TOKEN)
    await world.kube.put(SECRET, "s", {"token": "Yg=="}, silently=True)
    await world.kube.tell(SECRET, end)
    await asyncio.sleep(0.01)
    assert world.added == [KEY]


async def test_an_unforeseen_error_does_not_end_the_watch(world):
    await world.digest(TOKEN)
    await world.kube.tell(SECRET, ValueError("no JSON"))
    await asyncio.sleep(0.01)
    await world.kube.put(SECRET, "s", {"token": "YQ=="})
    assert world.added == [KEY]


async def test_who_is_gone_is_forgotten(world):
    await world.kube.put(SECRET, "s", {"token": "YQ=="})
    await world.digest(TOKEN)
    world.configs.forget(KEY)
    await world.kube.put(SECRET, "s", {"token": "Yg=="})
    assert world.added == []
    assert "token" not in str(vars(world.configs)["_known"])


async def test_a_refused_read_is_an_error_of_the_api(world):
    world.kube.error = ApiError(403, "Forbidden", "secrets is forbidden")
    with pytest.raises(ApiError):
        await world.digest(TOKEN)


async def test_values_are_not_kept(world):
    await world.kube.put(SECRET, "s", {"token": "c2VjcmV0"})
    await world.digest(TOKEN)
    assert "c2VjcmV0" not in repr(vars(world.configs))
