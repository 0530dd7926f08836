"""The API server itself, asked for dry runs: a hundred of them while kubectl would start.

Knows how to ask and what a refusal is. Does not know what is being asked.
"""

from __future__ import annotations

import base64
import json
import ssl
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from dev.cluster import paths
from llm_operator import kube, resources
from tests.e2e.conftest import dev_cluster
from tests.e2e.harness import Kubectl, eventually

Body = dict[str, Any]

_PATIENCE = 60

RESOURCES = {
    each.kind: each for each in (*resources.OWNED, resources.LLM_DEPLOYMENT, resources.POD)
}


class RefusedError(Exception):
    """The API server refused an object. The message is its own."""


class ApiServer:
    """Dry runs in one namespace, as the cluster's administrator.

    Args:
        kubeconfig: The cluster's credentials.
        folder: Where the client's certificate may lie while this is in use.
        namespace: Where objects are tried.
    """

    def __init__(self, kubeconfig: Path, folder: Path, namespace: str) -> None:
        config = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        certificate, key = folder / "client.crt", folder / "client.key"
        certificate.write_bytes(base64.b64decode(user["client-certificate-data"]))
        key.write_bytes(base64.b64decode(user["client-key-data"]))
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        context.load_cert_chain(certificate, key)
        self._client = httpx.Client(
            base_url=cluster["server"],
            verify=context,
            timeout=30,
        )
        self.namespace = namespace

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def serves(self, api_version: str) -> bool:
        """Whether the cluster knows this group and version."""
        return self._sent("GET", f"/apis/{api_version}").is_success

    def create(self, manifest: Body) -> Body:
        """The object as it would be stored if it were created. A field nobody knows is refused.

        Raises:
            RefusedError: It would not be created.
        """
        path = RESOURCES[manifest["kind"]].path(self.namespace)
        query = {"dryRun": "All", "fieldValidation": "Strict"}
        return self._answer("POST", path, params=query, json=manifest)

    def apply(self, manifest: Body) -> Body:
        """The object as it would be stored if the operator applied it.

        Raises:
            RefusedError: It would not be applied.
        """
        path = RESOURCES[manifest["kind"]].path(self.namespace, manifest["metadata"]["name"])
        query = {
            "dryRun": "All",
            "fieldManager": kube.FIELD_MANAGER,
            "fieldValidation": "Strict",
            "force": "true",
        }
        headers = {"Content-Type": "application/apply-patch+yaml"}
        body = kube.as_yaml(manifest).encode()
        return self._answer("PATCH", path, params=query, content=body, headers=headers)

    def _answer(self, method: str, path: str, **request: Any) -> Body:
        response = self._sent(method, path, **request)
        answer: Body = response.json()
        if response.is_success:
            return answer
        raise RefusedError(answer["message"])

    def _sent(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The response; an API server that is being restarted is waited for."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._client.request(method, path, **request)
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)


@pytest.fixture(scope="module")
def server(crd: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API server, in a namespace that enforces Pod Security `restricted`, with all kinds."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    crd("create", "-f", "-", stdin=json.dumps(namespace))
    inside = Kubectl(crd.binary, crd.kubeconfig, name)
    eventually(lambda: inside.exists("serviceaccount", "default"), within=30)  # pods need it
    asked = ApiServer(paths.KUBECONFIG, tmp_path_factory.mktemp("client"), name)
    foreign = {"keda": "keda.sh/v1alpha1", "prometheus": "monitoring.coreos.com/v1"}
    missing = [source for source, version in foreign.items() if not asked.serves(version)]
    for source in foreign:
        dev_cluster("crds", source, "on")
    yield asked
    for source in missing:
        dev_cluster("crds", source, "off")
    asked.close()
    crd("delete", "namespace", name, "--wait=false")
