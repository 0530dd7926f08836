"""Reconciling against an API server in memory: what is written, and above all what is not."""

import asyncio
import copy
import datetime as dt
import itertools

import pytest
from aiohttp import web

from llm_operator import inspection, names, podtemplate
from llm_operator.cache import Cache
from llm_operator.conditions import condition
from llm_operator.controller import Controller
from llm_operator.inspection import Inspection
from llm_operator.kube import ApiError
from llm_operator.resources import (
    DEPLOYMENT,
    EVENT,
    HORIZONTAL_POD_AUTOSCALER,
    LLM_DEPLOYMENT,
    NETWORK_POLICY,
    NODE,
    OPTIONAL,
    OWNED,
    POD,
    SERVICE,
)
from llm_operator.settings import RuntimeImage, Settings
from llm_operator.telemetry import Telemetry
from llm_operator.workqueue import Retry

from .conftest import merged

KEY = ("models", "smollm2")
GPU_NODE = (
    ("", "gpu-1"),
    {"metadata": {"name": "gpu-1"}, "status": {"allocatable": {"nvidia.com/gpu": "1"}}},
)
FOREIGN = {"metadata": {"namespace": "models", "name": "smollm2", "uid": "f"}, "spec": {}}


class FakeKube:
    """The part of the API server that the controller talks to; the watches see it at once."""

    def __init__(self):
        self.objects = {LLM_DEPLOYMENT: {}, **{resource: {} for resource in OWNED}}
        self.writes = []
        self.events = []
        self.errors = {}
        self.versions = itertools.count(100)

    def put(self, resource, body):
        body = {key: value for key, value in copy.deepcopy(body).items() if value is not None}
        body["metadata"]["resourceVersion"] = str(next(self.versions))
        body["metadata"].setdefault("uid", f"uid-{next(self.versions)}")
        self.objects[resource][KEY] = body
        return body

    async def get(self, resource, namespace, name):
        return self.objects[resource].get((namespace, name))

    async def apply(self, resource, manifest, *, force):
        self.writes.append(resource.kind)
        if resource in self.errors:
            raise self.errors[resource]
        live = self.objects[resource].get(KEY, {})
        assert force or not live, "an existing object was not to be taken over"
        return self.put(resource, merged(live, manifest))

    async def overwrite(self, resource, manifest, *, uid):
        live = self.objects[resource][KEY]
        assert live["metadata"]["uid"] == uid
        self.writes.append(f"overwrite {resource.kind}")
        return self.put(resource, merged(live, manifest))

    async def apply_status(self, resource, metadata, status):
        live = self.objects[resource].get(KEY)
        if live is None:
            raise ApiError(404, "NotFound", "not found")
        self.writes.append("status")
        assert metadata["uid"] == live["metadata"]["uid"]
        return self.put(resource, {**live, "status": status})

    async def serves(self, resource):
        return resource not in OPTIONAL

    async def delete(self, resource, namespace, name, *, uid):
        live = self.objects[resource].pop((namespace, name))
        assert live["metadata"].get("uid") == uid
        self.writes.append(f"delete {resource.kind}")

    async def list_all(self, resource, namespace, *, fields):
        assert resource is EVENT
        return [], 0

    async def create(self, resource, body):
        assert resource is EVENT
        self.events.append((body["type"], body["reason"]))


class World:
    """A controller with everything it sees."""

    def __init__(self, body, *, settings=None):
        self.kube = FakeKube()
        self.settings = settings or Settings(runtime_image=RuntimeImage(repository="registry/llm"))
        self.hidden = set()  # what the watch does not bring, because the label is missing
        self.kube.put(LLM_DEPLOYMENT, body)
        self.inspections = []
        self.restart()

    def restart(self):
        """A new process of the operator, that knows only what lists bring."""
        self.cache = Cache()
        self.inspections.append(Inspection(kube=self.kube, add=lambda _: None))
        self.controller = Controller(
            kube=self.kube,
            cache=self.cache,
            settings=self.settings,
            inspection=self.inspections[-1],
            configs=None,
            telemetry=Telemetry(),
        )

    def watch(self):
        """Bring the cache up to date, as the watches do."""
        for resource, objects in self.kube.objects.items():
            if resource not in self.hidden:
                self.cache.replace(resource, "", list(objects.values()), at=10**9)

    def pod(self, body):
        """Have this one pod."""
        body["metadata"]["resourceVersion"] = str(next(self.kube.versions))
        self.kube.objects[POD] = {KEY: body}

    def nodes(self, *nodes):
        """Have these nodes."""
        for _, body in nodes:
            body["metadata"]["resourceVersion"] = str(next(self.kube.versions))
        self.kube.objects[NODE] = dict(nodes)

    async def reconcile(self):
        """Reconcile once; returns what was written."""
        self.watch()
        self.kube.writes.clear()
        await self.controller.reconcile(KEY)
        return list(self.kube.writes)

    async def waits(self):
        """Reconcile once, expecting that something is in the way; returns what was written."""
        self.watch()
        self.kube.writes.clear()
        with pytest.raises(Retry):
            await self.controller.reconcile(KEY)
        return list(self.kube.writes)

    def edit(self, resource, **changes):
        self.kube.put(resource, merged(self.kube.objects[resource][KEY], changes))

    @property
    def status(self):
        return self.kube.objects[LLM_DEPLOYMENT][KEY]["status"]

    @property
    def ready(self):
        found = condition(self.status, "Ready")
        return found["status"], found["reason"]

    @property
    def template(self):
        return podtemplate.digest_of(self.kube.objects[DEPLOYMENT][KEY]["spec"]["template"])


@pytest.fixture
def world(make_body):
    return World(make_body())


async def test_from_nothing_to_serving_in_six_writes(world, make_pod):
    assert await world.reconcile() == ["Deployment", "Service", "NetworkPolicy", "status"]
    assert world.ready == ("False", "RolloutInProgress")
    world.pod(make_pod(template=world.template, ready=True))
    assert await world.reconcile() == ["status"]
    assert world.ready == ("True", "ModelServing")
    assert world.kube.events == [("Normal", "ModelServing")]


async def test_nothing_is_written_when_nothing_changed(world):
    await world.reconcile()
    for _ in range(3):
        assert await world.reconcile() == []


async def test_a_new_operator_finds_nothing_to_write(world):
    await world.reconcile()
    world.restart()
    assert await world.reconcile() == []


@pytest.mark.parametrize(
    "resource", [DEPLOYMENT, SERVICE, NETWORK_POLICY], ids=lambda each: each.kind
)
async def test_a_deleted_object_is_put_back(world, resource):
    await world.reconcile()
    del world.kube.objects[resource][KEY]
    assert resource.kind in await world.reconcile()


async def test_an_edited_object_is_put_back(world):
    await world.reconcile()
    world.edit(DEPLOYMENT, spec={"replicas": 9})
    world.edit(SERVICE, spec={"selector": {"app.kubernetes.io/instance": "other"}})
    assert await world.reconcile() == ["Deployment", "Service"]


async def test_an_edit_that_an_apply_cannot_undo_is_overwritten(world):
    await world.reconcile()
    wanted = world.kube.objects[SERVICE][KEY]["spec"]
    world.edit(SERVICE, spec={"ports": [{"name": "http", "port": 81, "protocol": "TCP"}]})
    world.kube.errors[SERVICE] = ApiError(422, "Invalid", "spec.ports[1].name: Duplicate value")
    assert await world.reconcile() == ["Service", "overwrite Service"]
    assert world.kube.objects[SERVICE][KEY]["spec"] == wanted
    assert await world.reconcile() == []


async def test_what_the_spec_says_no_more_is_applied_away(world):
    spec = world.kube.objects[LLM_DEPLOYMENT][KEY]["spec"]
    world.edit(LLM_DEPLOYMENT, spec={**spec, "service": {"annotations": {"a": "b"}}})
    await world.reconcile()
    live = world.kube.objects[LLM_DEPLOYMENT][KEY]
    world.kube.put(LLM_DEPLOYMENT, {**live, "spec": spec})
    assert "Service" in await world.reconcile()


async def test_what_others_add_is_left_alone(world):
    await world.reconcile()
    restarted = {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}
    world.edit(DEPLOYMENT, spec={"template": restarted})
    assert await world.reconcile() == []


async def test_an_object_that_lost_its_labels_is_found_and_mended(world):
    await world.reconcile()
    world.edit(SERVICE, metadata={"labels": {names.MANAGED_BY_LABEL: "nobody"}})
    world.hidden.add(SERVICE)
    world.restart()
    assert await world.reconcile() == ["Service"]


@pytest.mark.parametrize(
    "resource", [DEPLOYMENT, SERVICE, NETWORK_POLICY], ids=lambda each: each.kind
)
async def test_a_foreign_object_is_never_taken_over(world, resource):
    world.kube.put(resource, FOREIGN)
    world.hidden.add(resource)
    writes = await world.waits()
    assert resource.kind not in writes
    assert world.ready == ("False", "NameConflict")
    assert f"{resource.kind} smollm2 exists" in condition(world.status, "Ready")["message"]
    assert world.kube.events == [("Warning", "NameConflict")]


async def test_objects_of_a_deleted_namesake_are_waited_for(world):
    await world.reconcile()
    world.edit(LLM_DEPLOYMENT, metadata={"uid": "a new one"}, status=None)
    writes = await world.waits()
    assert writes == ["status"]
    assert world.ready == ("False", "RolloutInProgress")
    assert "of the same name is being removed" in condition(world.status, "Ready")["message"]


async def test_an_object_that_is_being_deleted_is_waited_for(world):
    await world.reconcile()
    world.edit(DEPLOYMENT, metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    assert "Deployment" not in await world.waits()


async def test_a_deleted_llmdeployment_is_left_to_the_garbage_collector(world):
    await world.reconcile()
    world.edit(LLM_DEPLOYMENT, metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    del world.kube.objects[DEPLOYMENT][KEY]
    assert await world.reconcile() == []


async def test_nothing_is_put_back_before_the_watch_tells_of_a_deletion(world):
    await world.reconcile()
    del world.kube.objects[LLM_DEPLOYMENT][KEY]
    world.hidden.add(LLM_DEPLOYMENT)
    world.edit(SERVICE, metadata={"labels": {names.MANAGED_BY_LABEL: "edited"}})
    del world.kube.objects[DEPLOYMENT][KEY]
    assert "Deployment" not in await world.reconcile()


async def test_an_unknown_key_is_nothing_to_do(world):
    await world.controller.reconcile(("models", "other"))
    assert world.kube.writes == []


ANSWERS = [
    (ApiError(403, "Forbidden", "exceeded quota: q"), "QuotaExceeded", "Reconciling"),
    (ApiError(403, "Forbidden", "cannot create resource"), "Forbidden", "Reconciling"),
    (ApiError(409, "Conflict", "conflict"), "ApiError", "Reconciling"),
    (ApiError(503, "", "busy"), "ApiError", "Reconciling"),
    (ApiError(0, "NoAnswer", "no answer"), "ApiError", "Reconciling"),
]


@pytest.mark.parametrize(("error", "reason", "also"), ANSWERS, ids=lambda each: str(each)[:20])
async def test_an_answer_that_may_change_ends_in_a_condition_and_is_tried_again(
    world, error, reason, also
):
    world.kube.errors[DEPLOYMENT] = error
    await world.waits()
    assert world.ready == ("False", reason)
    assert condition(world.status, also)
    assert error.message in condition(world.status, "Ready")["message"]
    world.kube.errors.clear()
    await world.reconcile()
    assert world.ready == ("False", "RolloutInProgress")


@pytest.mark.parametrize(
    "error",
    [
        ApiError(422, "Invalid", "spec.template: Invalid value"),
        ApiError(500, "", ".spec.x: field not declared in schema"),
    ],
    ids=["422", "unknown field"],
)
async def test_a_spec_that_kubernetes_refuses_is_invalid_and_not_tried_again(world, error):
    world.kube.errors[DEPLOYMENT] = error
    await world.reconcile()
    assert world.ready == ("False", "InvalidSpec")
    assert condition(world.status, "Stalled")


async def test_without_any_image_the_user_is_told_where_to_set_one(make_body):
    world = World(make_body(), settings=Settings())
    assert await world.reconcile() == ["status"]
    assert world.ready == ("False", "InvalidSpec")
    assert "spec.image" in condition(world.status, "Ready")["message"]


async def test_a_spec_from_an_older_crd_is_invalid_and_named(make_body):
    world = World(make_body(replicas=-1))
    assert await world.reconcile() == ["status"]
    assert world.ready == ("False", "InvalidSpec")
    assert "spec.replicas" in condition(world.status, "Ready")["message"]


async def test_a_node_with_a_gpu_decides_once(world):
    world.nodes(GPU_NODE)
    await world.reconcile()
    assert world.status["target"] == "gpu"
    world.nodes()
    assert await world.reconcile() == []


async def test_a_lost_status_does_not_move_the_pods(world):
    world.nodes(GPU_NODE)
    await world.reconcile()
    world.nodes()
    del world.kube.objects[LLM_DEPLOYMENT][KEY]["status"]
    world.edit(LLM_DEPLOYMENT)
    assert await world.reconcile() == ["status"]
    assert world.status["target"] == "gpu"


async def test_scaling_leaves_the_template_alone(world):
    await world.reconcile()
    before = world.template
    world.edit(LLM_DEPLOYMENT, spec={"replicas": 4}, metadata={"generation": 2})
    assert await world.reconcile() == ["Deployment", "PodDisruptionBudget", "status"]
    assert world.template == before
    assert world.kube.objects[DEPLOYMENT][KEY]["spec"]["replicas"] == 4


async def test_what_is_wanted_no_more_is_deleted(world):
    world.edit(
        LLM_DEPLOYMENT,
        spec={"autoscaling": {"maxReplicas": 3}, "resources": {"requests": {"cpu": 1}}},
    )
    assert "HorizontalPodAutoscaler" in await world.reconcile()
    world.edit(LLM_DEPLOYMENT, spec={"suspend": True}, metadata={"generation": 2})
    assert "delete HorizontalPodAutoscaler" in await world.reconcile()
    assert not world.kube.objects[HORIZONTAL_POD_AUTOSCALER]
    assert world.kube.objects[DEPLOYMENT][KEY]["spec"]["replicas"] == 0
    assert world.ready == ("False", "Suspended")


async def test_a_new_autoscaler_is_asked_again_when_it_says_that_it_finds_no_pods(world):
    world.edit(
        LLM_DEPLOYMENT,
        spec={"autoscaling": {"maxReplicas": 3}, "resources": {"requests": {"cpu": 1}}},
    )
    await world.reconcile()
    since = dt.datetime.now(dt.UTC).isoformat()
    said = {"type": "ScalingActive", "status": "False", "reason": "InvalidSelector"}
    said |= {"message": "no selector", "lastTransitionTime": since}
    world.edit(HORIZONTAL_POD_AUTOSCALER, status={"conditions": [said]})
    world.watch()
    assert 15 < await world.controller.reconcile(KEY) <= 21
    assert condition(world.status, "Autoscaled")["reason"] == "NotReported"
    said |= {"lastTransitionTime": "2026-01-01T00:00:00Z"}
    world.edit(HORIZONTAL_POD_AUTOSCALER, status={"conditions": [said]})
    world.watch()
    assert await world.controller.reconcile(KEY) is None
    assert condition(world.status, "Autoscaled")["reason"] == "InvalidSelector"


async def test_pods_that_are_refused_are_told_in_the_words_of_the_api_server(world):
    await world.reconcile()
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}
    refused |= {"message": 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'}
    world.edit(DEPLOYMENT, status={"conditions": [refused]})
    assert await world.reconcile() == ["status"]
    assert world.ready == ("False", "PodCreationFailed")
    assert "violates PodSecurity" in condition(world.status, "Ready")["message"]
    assert world.kube.events == [("Warning", "PodCreationFailed")]
    world.edit(DEPLOYMENT, status={"conditions": []})
    await world.reconcile()
    assert world.ready == ("False", "RolloutInProgress")


async def test_a_foreign_object_that_is_not_wanted_is_not_deleted(world):
    world.kube.put(HORIZONTAL_POD_AUTOSCALER, FOREIGN)
    await world.reconcile()
    assert world.kube.objects[HORIZONTAL_POD_AUTOSCALER]


async def test_what_was_left_behind_is_taken_up_again(world):
    await world.reconcile()
    for resource in (DEPLOYMENT, SERVICE, NETWORK_POLICY):
        world.edit(resource, metadata={"ownerReferences": []})
    assert await world.reconcile() == ["Deployment", "Service", "NetworkPolicy"]
    owners = world.kube.objects[SERVICE][KEY]["metadata"]["ownerReferences"]
    assert [owner["name"] for owner in owners] == ["smollm2"]


async def test_a_kind_that_the_cluster_lacks_is_told_and_the_rest_serves(world, make_pod):
    world.edit(LLM_DEPLOYMENT, spec={"monitoring": {"enabled": True}})
    await world.waits()
    world.pod(make_pod(template=world.template, ready=True))
    await world.waits()
    assert world.ready == ("True", "ModelServing")
    stalled = condition(world.status, "Stalled")
    assert stalled["reason"] == "KindNotServed"
    assert "Prometheus Operator" in stalled["message"]


async def test_an_unknown_profile_names_those_there_are(make_body):
    settings = Settings(
        runtime_image=RuntimeImage(repository="registry/llm"), hardware_profiles={"small": {}}
    )
    world = World(make_body(hardwareProfile="large"), settings=settings)
    assert await world.waits() == ["status"]
    assert world.ready == ("False", "InvalidSpec")
    assert "the operator knows small" in condition(world.status, "Ready")["message"]


async def test_events_are_for_news_alone(world, make_pod):
    await world.reconcile()
    pull = {"state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}
    world.pod(make_pod(template=world.template, container=pull))
    await world.reconcile()
    await world.reconcile()
    world.pod(make_pod(template=world.template, ready=True))
    await world.reconcile()
    await world.reconcile()
    assert world.kube.events == [("Warning", "ImagePullFailed"), ("Normal", "ModelServing")]


async def test_what_is_stuck_while_pods_serve_is_told(world, make_pod):
    await world.reconcile()
    world.pod(make_pod(template=world.template, ready=True))
    await world.reconcile()
    world.edit(LLM_DEPLOYMENT, spec={"replicas": 2}, metadata={"generation": 2})
    stuck = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    world.edit(DEPLOYMENT, status={"conditions": [stuck]})
    await world.reconcile()
    await world.reconcile()
    assert world.ready == ("True", "ModelServing")
    assert world.kube.events == [
        ("Normal", "ModelServing"),
        ("Warning", "ProgressDeadlineExceeded"),
    ]


def ready_pod(make_pod, template, *, at, restarts=0, reached=False):
    """A pod of noon whose server started and became ready at this hour and minute."""
    body = make_pod(template=template, ready=True, creationTimestamp="2026-01-01T12:00:00Z")
    body["status"]["conditions"][0]["lastTransitionTime"] = f"2026-01-01T{at}:09Z"
    running = {"running": {"startedAt": f"2026-01-01T{at}:02Z"}}
    server = {"name": "server", "ready": True, "started": True, "state": running}
    body["status"]["containerStatuses"] = [server | {"restartCount": restarts}]
    body["status"] |= {"podIP": "127.0.0.1"} if reached else {}
    return body


async def test_a_server_that_starts_anew_has_no_second_cold_start(world, make_pod):
    await world.reconcile()
    world.pod(ready_pod(make_pod, world.template, at="12:00"))
    await world.reconcile()
    first = world.status["coldStart"]
    assert first["total"] == "9s"
    stopped = ready_pod(make_pod, world.template, at="15:30")
    stopped["status"]["conditions"][0]["status"] = "False"
    world.pod(stopped)
    await world.reconcile()
    assert world.ready[0] == "False"
    world.pod(ready_pod(make_pod, world.template, at="15:30"))
    await world.reconcile()
    assert world.ready[0] == "True"
    assert world.status["coldStart"] == first


class Reporting:
    """A pod's server, that says what it runs on."""

    def __init__(self):
        self.device, self.asked = "cuda", 0

    async def answer(self, _):
        self.asked += 1
        if self.device is None:
            return web.Response(status=500)
        timeline = {"process_up": 0.5}
        return web.json_response(
            {"started_at": 1.0, "timeline": timeline, "device": {"type": self.device}}
        )


@pytest.fixture
async def reporting(monkeypatch):
    server = Reporting()
    app = web.Application()
    app.router.add_get("/startupz", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr(names, "PORT", runner.addresses[0][1])
    monkeypatch.setattr(inspection, "_TRIES", (0.0, 0.0, 0.0))
    yield server
    await runner.cleanup()


async def device_becomes(world, expected):
    """Reconcile until the status has this type of device."""
    for _ in range(500):
        await world.reconcile()
        if world.status.get("device", {}).get("type") == expected:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"the device is {world.status.get('device')}")


async def test_a_restart_that_nobody_saw_does_not_leave_the_old_device(world, make_pod, reporting):
    def runs(at, restarts=0):
        world.pod(ready_pod(make_pod, world.template, at=at, restarts=restarts, reached=True))

    await world.reconcile()
    runs("12:00")
    await device_becomes(world, "cuda")
    first = world.status["coldStart"]
    world.restart()
    assert (await world.reconcile(), reporting.asked) == ([], 1)

    reporting.device = "cpu"
    runs("15:30", restarts=1)
    await device_becomes(world, "cpu")
    assert world.status["coldStart"] == first
    world.restart()
    while reporting.asked < 3:
        assert await world.reconcile() == []
        await asyncio.sleep(0.01)

    reporting.device = None
    runs("16:30", restarts=2)
    await device_becomes(world, None)
    for each in world.inspections:
        await each.close()


@pytest.mark.parametrize(("ago", "least", "most"), [(4, 4, 6.1), (60, 15, 15)])
async def test_a_pod_that_is_being_prepared_is_looked_at_again_when_it_takes_long(
    world, make_pod, ago, least, most
):
    await world.reconcile()
    scheduled = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=ago)
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": scheduled.isoformat()}
    creating = {"state": {"waiting": {"reason": "ContainerCreating"}}}
    world.pod(make_pod(template=world.template, container=creating, conditions=[placed]))
    world.watch()
    assert least <= await world.controller.reconcile(KEY) <= most
