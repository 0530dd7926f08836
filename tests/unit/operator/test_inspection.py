"""Asking real servers over HTTP: how often, what becomes of the answers, and of none."""

import asyncio
import dataclasses

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from llm_operator import inspection, names
from llm_operator.coldstart import Pull
from llm_operator.inspection import Inspection, warned
from llm_operator.kube import Kube
from llm_operator.pods import Pod, Warned

KEY = ("models", "smollm2")
POD = Pod(
    name="smollm2-a",
    uid="u-1",
    address="127.0.0.1",
    created="2026-01-01T00:00:00Z",
    scheduled=None,
    started="2026-01-01T00:00:02Z",
    ready_since="2026-01-01T00:00:05Z",
    template="t",
    ready=True,
    counts=True,
    diagnosis=None,
)
REPORT = {
    "started_at": 1.0,
    "timeline": {"process_up": 0.5},
    "device": {"type": "cpu", "threads": 2},
}
PULLED = {
    "reason": "Pulled",
    "type": "Normal",
    "involvedObject": {"fieldPath": "spec.containers{server}"},
    "message": 'Successfully pulled image "x" in 3s (3s including waiting). Image size: 9 bytes.',
}
SECRET = 'MountVolume.SetUp failed for volume "keys" : secret "keys" not found'


class World:
    """A pod's server and an API server, on one port."""

    def __init__(self):
        self.report = REPORT
        self.events = [PULLED]
        self.refuse_events = False
        self.asked, self.listed, self.added = 0, [], []
        self.requests = asyncio.Queue()
        self.news = asyncio.Event()

    async def startupz(self, _):
        self.asked += 1
        self.requests.put_nowait("startupz")
        return web.json_response(self.report, status=200 if self.report else 500)

    async def list_events(self, request):
        self.listed.append(request.query.get("fieldSelector"))
        self.requests.put_nowait("events")
        if self.refuse_events:
            return web.json_response({"reason": "Forbidden", "message": "no"}, status=403)
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": self.events})

    def add(self, key):
        self.added.append(key)
        self.news.set()

    async def told(self):
        """Wait for the news."""
        await asyncio.wait_for(self.news.wait(), 10)
        self.news.clear()

    async def answered(self, what, times=1):
        """Wait until that was asked for, and for the answer to arrive."""
        for _ in range(times):
            while await asyncio.wait_for(self.requests.get(), 10) != what:
                pass
        await asyncio.sleep(0.05)


@pytest.fixture
def world():
    return World()


@pytest.fixture
async def inspector(world, monkeypatch):
    app = web.Application()
    app.router.add_get("/startupz", world.startupz)
    app.router.add_get("/api/v1/namespaces/models/events", world.list_events)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    monkeypatch.setattr(names, "PORT", port)
    monkeypatch.setattr(inspection, "_TRIES", (0.0, 0.2, 0.2))
    kube = Kube(ApiClient(Configuration(host=f"http://127.0.0.1:{port}")))
    made = Inspection(kube=kube, add=world.add)
    yield made
    await made.close()
    await kube.close()
    await runner.cleanup()


async def test_a_pod_is_asked_once_and_its_events_tell_of_the_pull(world, inspector):
    assert inspector.of(KEY, POD).report is None
    await world.told()
    for _ in range(3):
        found = inspector.of(KEY, POD)
    assert found.report.device == {"type": "cpu", "threads": 2}
    assert found.pull == Pull(3, 9)
    assert (world.asked, world.added) == (1, [KEY])
    assert world.listed == ["involvedObject.uid=u-1"]


async def test_a_pod_without_an_address_is_not_asked(world, inspector):
    inspector.of(KEY, dataclasses.replace(POD, address=None))
    await asyncio.sleep(0.05)
    assert world.asked == 0
    inspector.of(KEY, POD)
    await world.told()


async def test_a_server_that_was_started_anew_is_asked_again(world, inspector):
    inspector.of(KEY, POD)
    await world.told()
    world.report = {**REPORT, "device": {"type": "cuda"}}
    anew = dataclasses.replace(POD, started="2026-01-01T01:00:00Z")
    assert inspector.of(KEY, anew).report is None, "the old answer is not the new server's"
    await world.told()
    assert inspector.of(KEY, anew).report.device == {"type": "cuda"}


@pytest.mark.parametrize("answer", [None, {"hello": "world"}])
async def test_what_is_no_inference_server_is_asked_three_times_and_left_alone(
    world, inspector, answer
):
    world.report = answer
    inspector.of(KEY, POD)
    await world.answered("startupz", 3)
    assert inspector.of(KEY, POD).report is None
    assert (world.asked, world.added, world.listed) == (3, [], [])


async def test_events_that_are_refused_are_asked_for_again(world, inspector):
    world.refuse_events = True
    inspector.of(KEY, POD)
    await world.answered("events")
    world.refuse_events = False
    await world.told()
    assert inspector.of(KEY, POD).pull == Pull(3, 9)


async def test_pods_that_are_gone_are_forgotten(world, inspector):
    inspector.of(KEY, POD)
    await world.told()
    inspector.keep(KEY, [POD])
    assert inspector.of(KEY, POD).report
    inspector.keep(KEY, [])
    assert inspector.of(KEY, POD).report is None


def warning(reason="FailedMount", message=SECRET, at="2026-01-01T00:00:10Z", **more):
    return {"type": "Warning", "reason": reason, "message": message, "lastTimestamp": at, **more}


async def test_warnings_are_news_once_and_stay_while_the_events_cannot_be_read(
    world, inspector, monkeypatch
):
    world.events = [warning()]
    assert inspector.warnings_about(KEY, POD) == ()
    await world.told()
    await world.answered("events")
    monkeypatch.setattr(inspection, "_EVENTS_SECONDS", 0)
    for refused in (False, True):
        world.refuse_events = refused
        assert inspector.warnings_about(KEY, POD) == (Warned("FailedMount", SECRET),)
        await world.answered("events")
    assert inspector.warnings_about(KEY, POD) == (Warned("FailedMount", SECRET),)
    assert world.added == [KEY]


def test_the_newest_warning_comes_first_however_its_time_is_written():
    found = warned(
        [
            warning(message="old"),
            warning(message="series", at=None, series={"lastObservedTime": "2026-01-01T00:00:30Z"}),
            warning(message="event time", at=None, eventTime="2026-01-01T00:00:20.5Z"),
            {**warning(message="no warning"), "type": "Normal"},
        ]
    )
    assert [each.message for each in found] == ["series", "event time", "old"]


def test_what_is_not_warned_of_any_more_is_history():
    found = warned([warning(message="mended"), warning(at="2026-01-01T00:10:00Z")])
    assert [each.message for each in found] == [SECRET]
    assert warned([warning(at=None)])


@pytest.mark.parametrize("reason", ["FailedMount", "FailedCreatePodSandBox"])
def test_a_pod_whose_image_is_pulled_has_its_volumes_and_sandbox(reason):
    pulling = {"type": "Normal", "reason": "Pulling", "lastTimestamp": "2026-01-01T00:00:20Z"}
    events = [warning(reason), warning("Failed", "Error: ErrImagePull"), pulling]
    assert [each.reason for each in warned(events)] == ["Failed"]
    later = warning(reason, at="2026-01-01T00:00:30Z")
    assert [each.reason for each in warned([*events, later])] == [reason, "Failed"]
