"""What makes the operator act: kopf's watches. Decorators, kopf's settings and nothing else.

Every watch event updates the cache and, if it is news, ends in one call, `queue.add(key)`. Only
`on.event` handlers are used: kopf then writes nothing, neither finalizers nor annotations, to any
object. Its indexes are not used: until all of them are filled, each object that comes wakes every
other one that waits, which takes minutes for some thousand objects.
"""

from dataclasses import dataclass

import kopf

from llm_operator.cache import Cache, Key, owner_of
from llm_operator.deafness import Deafness
from llm_operator.resources import NODE, OWNED, POD, Resource
from llm_operator.resync import MANAGED
from llm_operator.workqueue import WorkQueue


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
    # kopf keeps a task and the last event of every object for so long, whole as they came.
    settings.queueing.idle_timeout = 0.5
    settings.watching.chunk_size = 250
    for resource in (*OWNED, POD):
        settings.watching.label_selectors[_selector(resource)] = MANAGED
    return settings


def watch(resource: Resource) -> None:
    """Have a kind of objects watched. Called before kopf starts."""

    # A name and a docstring of its own would say no more: all kinds are treated alike.
    @kopf.on.event(*_selector(resource), id=f"{resource.plural}-changed")
    async def changed(*, memo: Operator, event: kopf.RawEvent, **_: object) -> None:
        memo.saw(resource, event)


def _selector(resource: Resource) -> tuple[str, str, str]:
    """Group, version and plural, as kopf names a kind."""
    group, _, version = resource.api_version.rpartition("/")
    return group, version, resource.plural
