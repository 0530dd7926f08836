"""The Kubernetes API, as far as the operator writes to it: the only user of the client library.

Objects go in and come out as plain dicts: typed models of the client drop fields they do not know.
Writes are server-side apply, except Events. Knows paths and errors, not what is being written.
"""

import asyncio
import json
import logging
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.rest import RESTResponse

from llm_operator.resources import Resource

Body = dict[str, Any]

FIELD_MANAGER = "llm-operator"

_TIMEOUT = aiohttp.ClientTimeout(total=30)
_CONNECTIONS = 32
_JSON = "application/json"
# With a charset the client library leaves the body to us.
_APPLY = "application/apply-patch+yaml; charset=utf-8"
_MERGE = "application/merge-patch+json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_WATCH_SECONDS = 300
_PAGE = "250"
"""Most objects in one answer: a thousand pods are 7 MB of text, and many times that when parsed."""

_PAUSES = (0.1, 0.3, 1.0)
"""Seconds before each further try of a request that was refused for a reason that passes."""
_LONGEST_PAUSE = 5.0
"""Most seconds to wait because the API server asks for it."""
_PASSING = frozenset({429, 500, 502, 503, 504})
_LASTING = b"field not declared in schema"
"""What is answered with 500 and is the request's own fault."""

HTTP_OK = 200
HTTP_NOT_FOUND = 404

logger = logging.getLogger(__name__)


class ApiError(Exception):
    """The API server refused a request, or could not be asked.

    Attributes:
        status: HTTP status; 0 if there was no answer.
        reason: Kubernetes' word for it, such as Forbidden or AlreadyExists.
        message: The API server's sentence.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class Kube:
    """A connection to the API server."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    @classmethod
    async def connect(cls, *traces: aiohttp.TraceConfig) -> Self:
        """Connect as the pod's service account, or as KUBECONFIG says outside of a cluster.

        Args:
            traces: What looks on at every request.
        """
        configuration = Configuration()
        if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(client_configuration=configuration)
        configuration.connection_pool_maxsize = _CONNECTIONS
        configuration.trace_configs = list(traces)
        return cls(ApiClient(configuration))

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def get(self, resource: Resource, namespace: str, name: str) -> Body | None:
        """The object, or None if there is none.

        Raises:
            ApiError: the API server refused.
        """
        try:
            return await self._request("GET", resource.path(namespace, name))
        except ApiError as error:
            if error.status == HTTP_NOT_FOUND:
                return None
            raise

    async def list_all(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        selector: str = "",
        fields: str = "",
        metadata_only: bool = False,
        keep: Callable[[Body], Any] = lambda item: item,
    ) -> tuple[list[Body], int]:
        """All objects of a kind in a namespace, or in all, and the version of the list.

        Args:
            resource: Kind of the objects.
            namespace: Where to look; everywhere if empty.
            selector: Labels that the objects have.
            fields: Fields that the objects have, of the few that a kind can be selected by.
            metadata_only: Leave out all but the metadata.
            keep: What to keep of each object: lists come in pages, and are never here as a whole.

        Raises:
            ApiError: the API server refused.
        """
        given = {"labelSelector": selector, "fieldSelector": fields}
        query = {name: value for name, value in given.items() if value}
        accept = _METADATA_LIST if metadata_only else _JSON
        query["limit"] = _PAGE
        # Items of a list do not say what they are; everywhere else objects do.
        kind = {"apiVersion": resource.api_version, "kind": resource.kind}
        items: list[Body] = []
        while True:
            path = resource.path(namespace)
            answer = await self._request("GET", path, query=query, accept=accept)
            items += [keep(kind | item) for item in answer["items"]]
            if not (rest := answer["metadata"].get("continue")):
                return items, int(answer["metadata"]["resourceVersion"])
            query["continue"] = rest

    async def watch_metadata(
        self, resource: Resource, namespace: str, *, since: int
    ) -> AsyncIterator[Body]:
        """The metadata of objects as they change, until the API server ends the watch.

        Args:
            resource: Kind of the objects.
            namespace: Where to look; everywhere if empty.
            since: Version after which changes are told.

        Raises:
            ApiError: the API server refused, or the version is too old.
        """
        query = {
            "watch": "1",
            "resourceVersion": str(since),
            "timeoutSeconds": str(_WATCH_SECONDS),
            "allowWatchBookmarks": "true",
        }
        limits = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=_WATCH_SECONDS + 30)
        path = resource.path(namespace)
        try:
            response = await self._send("GET", path, query, limits=limits, accept=_METADATA)
            if response.status != HTTP_OK:
                _answer(response.status, await response.read())
            async for line in response.response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(
                        status.get("code", 0), status.get("reason", ""), status.get("message", "")
                    )
                if event["type"] != "BOOKMARK":
                    yield event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _no_answer(error) from error

    async def serves(self, resource: Resource) -> bool:
        """Whether the cluster has this kind at all.

        Raises:
            ApiError: the API server could not tell.
        """
        try:
            answer = await self._request("GET", f"/apis/{resource.api_version}")
        except ApiError as error:
            if error.status == HTTP_NOT_FOUND:
                return False
            raise
        return any(each["name"] == resource.plural for each in answer["resources"])

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str) -> None:
        """Delete an object, unless it is another one by now.

        Raises:
            ApiError: the API server refused; it is gone, or another one of that name is there.
        """
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        await self._request("DELETE", resource.path(namespace, name), body=body)

    async def apply(self, resource: Resource, manifest: Mapping[str, Any], *, force: bool) -> Body:
        """Apply all the fields the operator owns, and return the object as it is now.

        Args:
            resource: Kind of the object.
            manifest: Every owned field; one that is left out is removed from the object.
            force: Take over fields that another manager owns. Without it that is an error, which
                keeps a foreign object of the same name from being taken over.

        Raises:
            ApiError: the API server refused. An unknown field is refused, never dropped.
        """
        metadata = manifest["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"])
        return await self._apply(path, manifest, force=force)

    async def overwrite(self, resource: Resource, manifest: Mapping[str, Any], *, uid: str) -> Body:
        """Write all the fields of `manifest`, and return the object as it is now.

        Lists become what they are in the manifest, while an apply leaves in them what others put
        there.

        Args:
            resource: Kind of the object.
            manifest: The fields; what is not among them stays.
            uid: The object that is meant. Another one of its name is a conflict.

        Raises:
            ApiError: the API server refused. An unknown field is refused, never dropped.
        """
        metadata = manifest["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        body = {**manifest, "metadata": {**metadata, "uid": uid}}
        return await self._request("PATCH", path, query=query, body=body, content_type=_MERGE)

    async def apply_status(
        self, resource: Resource, metadata: Mapping[str, str], status: Mapping[str, Any]
    ) -> Body:
        """Apply the whole status of an object, and return the object as it is now.

        Args:
            resource: Kind of the object.
            metadata: Its namespace, name and uid. Another uid is a conflict: another object.
            status: Every field of the status.

        Raises:
            ApiError: the API server refused.
        """
        body = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": dict(metadata),
            "status": status,
        }
        path = resource.path(metadata["namespace"], metadata["name"]) + "/status"
        return await self._apply(path, body, force=True)

    async def create(self, resource: Resource, body: Mapping[str, Any]) -> Body:
        """Create an object, such as an Event, that nobody changes later.

        Raises:
            ApiError: the API server refused.
        """
        return await self._request("POST", resource.path(body["metadata"]["namespace"]), body=body)

    async def replace(self, resource: Resource, body: Mapping[str, Any]) -> Body:
        """Replace an object, and return it as it is now.

        Raises:
            ApiError: the API server refused. A version in the metadata that is not the current one
                is a conflict.
        """
        metadata = body["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"])
        return await self._request("PUT", path, body=body)

    async def wait_until_served(self, api_version: str, *, interval: float = 2) -> None:
        """Wait until the API server knows the group and version: its CRD is there."""
        waited = False
        while True:
            try:
                await self._request("GET", f"/apis/{api_version}")
            except ApiError as error:
                if not waited:
                    logger.warning("waiting for the API %s: %s", api_version, error.message)
                waited = True
                await asyncio.sleep(interval)
            else:
                return

    async def _apply(self, path: str, body: Mapping[str, Any], *, force: bool) -> Body:
        query = {
            "fieldManager": FIELD_MANAGER,
            "fieldValidation": "Strict",
            "force": "true" if force else "false",
        }
        return await self._request(
            "PATCH", path, query=query, body=as_yaml(body), content_type=_APPLY
        )

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | str | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> Body:
        """Ask, and ask again if the API server has no time now.

        Every request may be repeated: applies and deletions come to the same, and what was created
        or replaced after all is a conflict the second time.

        Raises:
            ApiError: it was refused, or there was no answer.
        """
        for pause in (*_PAUSES, None):
            try:
                response = await self._send(
                    method, path, query or {}, body=body, content_type=content_type, accept=accept
                )
                text = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise _no_answer(error) from error
            if pause is None or response.status not in _PASSING or _LASTING in text:
                break
            await asyncio.sleep(_patience(pause, response.headers.get("Retry-After", "")))
        return _answer(response.status, text)

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        body: Mapping[str, Any] | str | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
        limits: aiohttp.ClientTimeout = _TIMEOUT,
    ) -> RESTResponse:
        headers = {"Accept": accept, "Content-Type": content_type, **self._client.default_headers}
        await self._client.update_params_for_auth(
            headers, None, ["BearerToken"], path, method, body
        )
        url = self._client.configuration.host + path
        if query:
            url += f"?{urlencode(query)}"
        return await self._client.call_api(
            method, url, header_params=headers, body=body, _request_timeout=limits
        )


def as_yaml(body: Mapping[str, Any]) -> str:
    """`body` as JSON that means the same to a YAML parser, which is what reads an applied patch.

    YAML has no surrogate pairs, so characters beyond U+FFFF stand for themselves; others that it
    would take for a line break or refuse are escaped.
    """
    text = json.dumps(body, ensure_ascii=False)
    return re.sub("[\x7f-\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _patience(pause: float, retry_after: str) -> float:
    """Seconds to wait before a request is repeated; by chance, so that not all come at once."""
    if retry_after.isdecimal():
        pause = max(pause, min(float(retry_after), _LONGEST_PAUSE))
    return pause * random.uniform(1, 1.5)  # noqa: S311 - no secret


def _no_answer(error: Exception) -> ApiError:
    message = f"no answer from the API server: {error or type(error).__name__}"
    return ApiError(0, "NoAnswer", message)


def _answer(status: int, text: bytes) -> Body:
    try:
        answer: Body = json.loads(text)
    except ValueError:
        answer = {"message": text.decode(errors="replace")}
    if status >= 400:  # noqa: PLR2004 - the border between success and failure in HTTP
        raise ApiError(status, answer.get("reason", ""), answer.get("message", ""))
    return answer
