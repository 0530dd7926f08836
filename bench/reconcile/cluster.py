"""The development cluster's API as the bench uses it: many writes at once, watches, fake nodes.

A client of its own, since the operator's is what is measured. Knows paths and how an identity, a
namespace and nodes for one run are made and removed; knows nothing of figures.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from dev.cluster import fake_nodes, gpu

Body = dict[str, Any]

RUN_LABEL = "bench.llm-operator.dev/run"
PODS_PER_NODE = 250
IDENTITY = "operator"
"""ServiceAccount that the operator runs as, so that the audit log tells its writes from others."""

_APPLY = {"Content-Type": "application/apply-patch+yaml"}
_MERGE = {"Content-Type": "application/merge-patch+json"}
_TOKEN_SECONDS = 7200
_WRITERS = 16
"""Writes at once: more do not make the API server faster on two cores."""
_DELETE_WITHIN = 900


@dataclass(frozen=True)
class Kind:
    """A kind of object that an LLMDeployment has one of, and where the API server keeps it."""

    name: str
    group_version: str
    plural: str

    def path(self, namespace: str, name: str = "") -> str:
        """Path of an object, or of all in a namespace."""
        root = f"/apis/{self.group_version}" if "/" in self.group_version else "/api/v1"
        return f"{root}/namespaces/{namespace}/{self.plural}" + (f"/{name}" if name else "")


LLM_DEPLOYMENT = Kind("LLMDeployment", "llm-operator.dev/v1alpha1", "llmdeployments")
DEPLOYMENT = Kind("Deployment", "apps/v1", "deployments")
SERVICE = Kind("Service", "v1", "services")
POD = Kind("Pod", "v1", "pods")
KINDS = {
    kind.plural: kind
    for kind in (
        DEPLOYMENT,
        SERVICE,
        Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
        Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets"),
        Kind("HorizontalPodAutoscaler", "autoscaling/v2", "horizontalpodautoscalers"),
    )
}
"""What an LLMDeployment may have one of, by the name on the command line."""


class RefusedError(RuntimeError):
    """The API server refused a request; the message is its sentence.

    Attributes:
        status: Of HTTP; 0 where it was refused in the middle of a stream.
    """

    def __init__(self, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.status = status


class Cluster:
    """A connection to the API server as its admin."""

    def __init__(self, session: aiohttp.ClientSession, configuration: Configuration) -> None:
        self._session = session
        self._configuration = configuration

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, kubeconfig: Path) -> AsyncIterator[Self]:
        """Connect as `kubeconfig` says, for the length of the block."""
        configuration = Configuration()
        await config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        client = ApiClient(configuration)
        connector = aiohttp.TCPConnector(ssl=client.rest_client.ssl_context, limit=0)
        async with aiohttp.ClientSession(
            configuration.host, connector=connector, read_bufsize=2**21
        ) as session:
            yield cls(session, configuration)

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Body:
        """Send one request and return the answer.

        Raises:
            RefusedError: the answer is no success.
        """
        async with self._session.request(
            method, path, json=body, params=query, headers=headers
        ) as answer:
            text = await answer.read()
            if not answer.ok:
                sentence = f"{method} {path}: {answer.status} {text.decode()[:500]}"
                raise RefusedError(sentence, answer.status)
            document: Body = json.loads(text)
            return document

    async def create_all(self, path: str, bodies: Iterable[Body]) -> None:
        """Create many objects of one kind, so many at once that the API server sets the pace."""
        left = iter(bodies)

        async def create() -> None:
            for body in left:
                await self.request("POST", path, body)

        await asyncio.gather(*(create() for _ in range(_WRITERS)))

    async def merge(self, path: str, body: Body) -> Body:
        """Change fields of an object."""
        return await self.request("PATCH", path, body, headers=_MERGE)

    async def items(self, path: str) -> tuple[list[Body], str]:
        """All objects under a path, and the version of the list."""
        answer = await self.request("GET", path)
        return answer["items"], answer["metadata"]["resourceVersion"]

    async def watch(
        self, path: str, version: str, *, name: str = ""
    ) -> AsyncIterator[tuple[str, Body]]:
        """Type and object of each event after `version`, until the stream ends."""
        query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "3600"}
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(path, params=query, timeout=timeout) as answer:
            buffer = b""
            async for data in answer.content.iter_any():
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise RefusedError(f"watch {path}: {event['object'].get('message')}")
                    yield event["type"], event["object"]

    async def apply(self, path: str, body: Body) -> None:
        """Apply one object."""
        query = {"fieldManager": "bench", "force": "true"}
        await self.request("PATCH", path, body, query=query, headers=_APPLY)

    @contextlib.asynccontextmanager
    async def run_in(self, namespace: str) -> AsyncIterator[Body]:
        """A namespace and an identity for the length of the block; gives its kubeconfig."""
        binding = f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{namespace}"
        await self.apply(f"/api/v1/namespaces/{namespace}", _namespace(namespace))
        try:
            accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts/{IDENTITY}"
            await self.apply(accounts, _service_account(namespace))
            await self.apply(binding, _binding(namespace))
            token = await self.request(
                "POST", f"{accounts}/token", {"spec": {"expirationSeconds": _TOKEN_SECONDS}}
            )
            yield self._kubeconfig(namespace, token["status"]["token"])
        finally:
            await self.request("DELETE", binding)
            await self._delete_namespace(namespace)

    async def _delete_namespace(self, namespace: str) -> None:
        path = f"/api/v1/namespaces/{namespace}"
        # Pods of nodes that are gone wait for a kubelet that never answers; these need none.
        await self._delete_all(LLM_DEPLOYMENT.path(namespace))
        await self.request("DELETE", path)
        async with asyncio.timeout(_DELETE_WITHIN):
            with contextlib.suppress(RefusedError):
                while await self.request("GET", path):  # noqa: ASYNC110 - the cluster has no event
                    await asyncio.sleep(1)

    async def _delete_all(self, path: str) -> None:
        """Delete a collection; thousands take the API server longer than it gives a request."""
        async with asyncio.timeout(_DELETE_WITHIN):
            while True:
                try:
                    await self.request("DELETE", path)
                except RefusedError as error:
                    if error.status != HTTPStatus.GATEWAY_TIMEOUT:
                        raise
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(1)  # it ends connections whose requests take too long
                else:
                    return

    @contextlib.asynccontextmanager
    async def nodes_for(self, run: str, pods: int) -> AsyncIterator[None]:
        """Fake nodes for the pods of this run and of no other, for the length of the block."""
        count = pods // PODS_PER_NODE + 2
        names = [f"{run}-{index}" for index in range(count)]
        try:
            for name in names:
                await self.request("POST", "/api/v1/nodes", _node(name, run))
            async with asyncio.timeout(60):
                for name in names:
                    await self._ready(name)
            yield
        finally:
            for name in names:
                with contextlib.suppress(RefusedError):
                    await self.request("DELETE", f"/api/v1/nodes/{name}")

    async def _ready(self, node: str) -> None:
        path = f"/api/v1/nodes/{node}"
        while not is_true(await self.request("GET", path), "Ready"):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.5)

    def _kubeconfig(self, namespace: str, token: str) -> Body:
        ca = Path(self._configuration.ssl_ca_cert).read_text()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "bench",
            "contexts": [
                {
                    "name": "bench",
                    "context": {"cluster": "bench", "user": "bench", "namespace": namespace},
                }
            ],
            "clusters": [
                {
                    "name": "bench",
                    "cluster": {
                        "server": self._configuration.host,
                        "certificate-authority-data": _base64(ca),
                    },
                }
            ],
            "users": [{"name": "bench", "user": {"token": token}}],
        }


def user(namespace: str) -> str:
    """How the audit log calls the operator of a run."""
    return f"system:serviceaccount:{namespace}:{IDENTITY}"


def is_true(body: Body, type_: str) -> bool:
    """Whether a condition of an object is True."""
    conditions = body.get("status", {}).get("conditions", ())
    return any(each["type"] == type_ and each["status"] == "True" for each in conditions)


def placement(run: str) -> Body:
    """What puts a pod on the nodes of this run."""
    return {
        "nodeSelector": {RUN_LABEL: run},
        "tolerations": [{"key": RUN_LABEL, "operator": "Exists", "effect": "NoSchedule"}],
    }


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _node(name: str, run: str) -> Body:
    body = fake_nodes.manifest(0, gpu.Gpus(0))
    body["metadata"]["name"] = name
    body["metadata"]["labels"] |= {"kubernetes.io/hostname": name, RUN_LABEL: run}
    body["spec"]["taints"] = [{"key": RUN_LABEL, "value": run, "effect": "NoSchedule"}]
    return body


def _namespace(name: str) -> Body:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _service_account(namespace: str) -> Body:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": IDENTITY, "namespace": namespace},
    }


def _binding(namespace: str) -> Body:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": namespace},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "cluster-admin",
        },
        "subjects": [{"kind": "ServiceAccount", "name": IDENTITY, "namespace": namespace}],
    }
