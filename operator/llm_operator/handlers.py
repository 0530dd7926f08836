"""What makes the operator act: kopf's watches, indexes and life cycle. Decorators and nothing else.

Every watch event ends in one call, `queue.add(key)`. Only `on.event` handlers and indexes are used:
kopf then writes nothing, neither finalizers nor annotations, to any object.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import kopf

from llm_operator import api, render
from llm_operator.cache import Body, Cache, Key, trimmed
from llm_operator.controller import Controller
from llm_operator.hardware import NodeFacts
from llm_operator.kube import DEPLOYMENT, LLM_DEPLOYMENT, SERVICE, Kube
from llm_operator.settings import Settings
from llm_operator.workqueue import WorkQueue

LLM_DEPLOYMENTS = (api.GROUP, api.VERSION, api.PLURAL)
DEPLOYMENTS = ("apps", "v1", "deployments")
SERVICES = ("", "v1", "services")
PODS = ("", "v1", "pods")
NODES = ("", "v1", "nodes")

MANAGED = {render.MANAGED_BY_LABEL: render.MANAGER}
MANAGED_SELECTOR = f"{render.MANAGED_BY_LABEL}={render.MANAGER}"


@dataclass
class Operator:
    """What lives as long as the process; kopf hands it to every handler as `memo`."""

    settings: Settings
    cache: Cache = field(init=False)
    queue: WorkQueue[Key] = field(init=False)
    kube: Kube = field(init=False)
    resync: asyncio.Task[None] = field(init=False)


@kopf.on.login()
def login(
    *, logger: kopf.Logger, settings: kopf.OperatorSettings, **_: object
) -> kopf.ConnectionInfo | None:
    """The pod's service account, else what KUBECONFIG says, exec plugins included."""
    return kopf.login_with_service_account(
        logger=logger, settings=settings
    ) or kopf.login_via_client(logger=logger, settings=settings)


@kopf.on.startup()
async def start(
    *,
    memo: Operator,
    settings: kopf.OperatorSettings,
    **indexes: Any,  # noqa: ANN401 - kopf passes each index under its name
) -> None:
    """Connect, wait for the CRD, and set up controller and queue over kopf's indexes."""
    configure(settings)
    memo.kube = await Kube.connect()
    await memo.kube.wait_until_served(api.API_VERSION)
    memo.cache = Cache(
        {
            LLM_DEPLOYMENT: indexes["llms"],
            DEPLOYMENT: indexes["deployments"],
            SERVICE: indexes["services"],
        }
    )
    pods, nodes = indexes["pods"], indexes.get("nodes")
    controller = Controller(
        kube=memo.kube,
        cache=memo.cache,
        pods=lambda key: pods.get(key, ()),
        nodes=None if nodes is None else lambda: (node for name in nodes for node in nodes[name]),
        settings=memo.settings,
    )
    memo.queue = WorkQueue(controller.reconcile)
    memo.resync = asyncio.create_task(resync(memo), name="resync")


def configure(settings: kopf.OperatorSettings) -> None:
    """Settings of kopf: alone, without writing, without looking for CRDs and namespaces."""
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.networking.request_timeout = 30
    for resource in (DEPLOYMENTS, SERVICES, PODS):
        settings.watching.label_selectors[resource] = MANAGED_SELECTOR


async def resync(memo: Operator) -> None:
    """Look at every object now and then, should an event ever be missed."""
    while True:
        await asyncio.sleep(memo.settings.resync_seconds)
        for key in memo.cache.keys(LLM_DEPLOYMENT):
            memo.queue.add(key)


@kopf.on.cleanup()
async def stop(*, memo: Operator, **_: object) -> None:
    """Stop working and disconnect."""
    memo.resync.cancel()
    await memo.queue.close()
    await memo.kube.close()


@kopf.on.probe(id="working")
async def working(*, memo: Operator, **_: object) -> int:
    """Number of objects being worked on, shown by /healthz."""
    return len(memo.queue)


@kopf.index(*LLM_DEPLOYMENTS)
async def llms(*, body: kopf.Body, **_: object) -> dict[Key, Body]:
    """LLMDeployments."""
    return {_key(body): trimmed(body)}


@kopf.index(*DEPLOYMENTS, labels=MANAGED)
async def deployments(*, body: kopf.Body, **_: object) -> dict[Key, Body]:
    """Deployments that the operator made."""
    return {_key(body): trimmed(body)}


@kopf.index(*SERVICES, labels=MANAGED)
async def services(*, body: kopf.Body, **_: object) -> dict[Key, Body]:
    """Services that the operator made."""
    return {_key(body): trimmed(body)}


@kopf.index(*PODS, labels=MANAGED)
async def pods(*, body: kopf.Body, **_: object) -> dict[Key, Body]:
    """Pods, by the LLMDeployment they belong to."""
    return {_key_of_owner(body): trimmed(body)}


def watch_nodes() -> None:
    """Have the cluster's nodes watched too. Called before kopf starts, where that is allowed."""

    @kopf.index(*NODES, id="nodes")
    async def nodes(*, name: str, body: kopf.Body, **_: object) -> dict[str, NodeFacts]:
        """Nodes, as far as hardware is chosen by them."""
        return {name: NodeFacts.of(body)}


@kopf.on.event(*LLM_DEPLOYMENTS)
async def llm_deployment_changed(
    *, memo: Operator, event: kopf.RawEvent, body: kopf.Body, **_: object
) -> None:
    """An LLMDeployment was made, changed or deleted."""
    if event["type"] == "DELETED":
        memo.cache.forget(LLM_DEPLOYMENT, _key(body))
    memo.queue.add(_key(body))


@kopf.on.event(*DEPLOYMENTS, labels=MANAGED)
async def deployment_changed(
    *, memo: Operator, event: kopf.RawEvent, body: kopf.Body, **_: object
) -> None:
    """A Deployment got on, was edited or deleted."""
    if event["type"] == "DELETED":
        memo.cache.forget(DEPLOYMENT, _key(body))
    memo.queue.add(_key(body))


@kopf.on.event(*SERVICES, labels=MANAGED)
async def service_changed(
    *, memo: Operator, event: kopf.RawEvent, body: kopf.Body, **_: object
) -> None:
    """A Service was edited or deleted."""
    if event["type"] == "DELETED":
        memo.cache.forget(SERVICE, _key(body))
    memo.queue.add(_key(body))


@kopf.on.event(*PODS, labels=MANAGED)
async def pod_changed(*, memo: Operator, body: kopf.Body, **_: object) -> None:
    """A pod was scheduled, started, became ready, failed or ended."""
    memo.queue.add(_key_of_owner(body))


def _key(body: Body) -> Key:
    metadata = body["metadata"]
    return metadata["namespace"], metadata["name"]


def _key_of_owner(pod: Body) -> Key:
    metadata = pod["metadata"]
    return metadata["namespace"], metadata["labels"].get(render.INSTANCE_LABEL, "")
