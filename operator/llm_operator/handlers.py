"""What makes the operator act: kopf's watches. Decorators, kopf's settings and nothing else.

Every watch event updates the cache and, if it is news, ends in one call, `queue.add(key)`. Only
`on.event` handlers are used: kopf then writes nothing, neither finalizers nor annotations, to any
object. Its indexes are not used: until all of them are filled, each object that comes wakes every
other one that waits, which takes minutes for some thousand objects.
"""

from dataclasses import dataclass

import kopf

from llm_operator import api
from llm_operator.cache import Cache, Key, owner_of
from llm_operator.deafness import Deafness
from llm_operator.kube import (
    DEPLOYMENT,
    LLM_DEPLOYMENT,
    NODE,
    POD,
    SERVICE,
    Resource,
)
from llm_operator.resync import MANAGED
from llm_operator.workqueue import WorkQueue

LLM_DEPLOYMENTS = (api.GROUP, api.VERSION, api.PLURAL)
DEPLOYMENTS = ("apps", "v1", "deployments")
SERVICES = ("", "v1", "services")
PODS = ("", "v1", "pods")
NODES = ("", "v1", "nodes")


@dataclass
class Operator:
    """What takes the events; kopf hands it to every handler as `memo`."""

    cache: Cache
    queue: WorkQueue[Key]
    deafness: Deafness

    def saw(self, resource: Resource, event: kopf.RawEvent) -> None:
        """Take note of a watch event, and look at the LLMDeployment concerned if it is news."""
        body = event["object"]
        self.deafness.heard(resource, body)
        note = self.cache.remove if event["type"] == "DELETED" else self.cache.put
        if note(resource, body) and resource is not NODE:
            self.queue.add(owner_of(resource, body))


class NoDiffBase(kopf.DiffBaseStorage):
    """Keeps no last-handled state: kopf would else build it anew for every event, unasked."""

    def build(self, **_: object) -> kopf.BodyEssence:
        """Nothing."""
        return kopf.BodyEssence()

    def fetch(self, **_: object) -> kopf.BodyEssence | None:
        """Nothing."""
        return None

    def store(self, **_: object) -> None:
        """Nothing."""


@kopf.on.login()
def login(
    *, logger: kopf.Logger, settings: kopf.OperatorSettings, **_: object
) -> kopf.ConnectionInfo | None:
    """The pod's service account, else what KUBECONFIG says, exec plugins included."""
    return kopf.login_with_service_account(
        logger=logger, settings=settings
    ) or kopf.login_via_client(logger=logger, settings=settings)


def kopf_settings() -> kopf.OperatorSettings:
    """Settings of kopf: alone, without writing, without looking for CRDs and namespaces."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    # Short at the end: once the API server is back, a watch must be too before it seems deaf.
    settings.networking.error_backoffs = (1, 1, 2, 3, *[5] * 10)
    settings.persistence.diffbase_storage = NoDiffBase()
    for resource in (DEPLOYMENTS, SERVICES, PODS):
        settings.watching.label_selectors[resource] = MANAGED
    return settings


@kopf.on.event(*LLM_DEPLOYMENTS)
async def llm_deployment_changed(*, memo: Operator, event: kopf.RawEvent, **_: object) -> None:
    """An LLMDeployment was made, changed or deleted."""
    memo.saw(LLM_DEPLOYMENT, event)


@kopf.on.event(*DEPLOYMENTS)
async def deployment_changed(*, memo: Operator, event: kopf.RawEvent, **_: object) -> None:
    """A Deployment got on, was edited or deleted."""
    memo.saw(DEPLOYMENT, event)


@kopf.on.event(*SERVICES)
async def service_changed(*, memo: Operator, event: kopf.RawEvent, **_: object) -> None:
    """A Service was edited or deleted."""
    memo.saw(SERVICE, event)


@kopf.on.event(*PODS)
async def pod_changed(*, memo: Operator, event: kopf.RawEvent, **_: object) -> None:
    """A pod was scheduled, started, became ready, failed or ended."""
    memo.saw(POD, event)


def watch_nodes() -> None:
    """Have the cluster's nodes watched too. Called before kopf starts, where that is allowed."""

    @kopf.on.event(*NODES)
    async def node_changed(*, memo: Operator, event: kopf.RawEvent, **_: object) -> None:
        """A node came, changed or went. What was decided stays: nothing is looked at again."""
        memo.saw(NODE, event)
