"""Probes and metrics: /livez, /readyz, /health, /startupz, /metrics.

Knows how the server's state becomes a status code. Never waits for anything.
"""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from llm_inference.health import Phase
from llm_inference.routes.state import Server
from llm_inference.serving import Serving

router = APIRouter(tags=["operations"])


@router.get("/livez")
async def livez(serving: Server) -> JSONResponse:
    """200 while the process can still come to serve; 503 when only a restart helps."""
    return _answer(serving, healthy=serving.alive)


@router.get("/readyz")
@router.get("/health")
async def readyz(serving: Server) -> JSONResponse:
    """200 if a request sent now would be served."""
    return _answer(serving, healthy=serving.ready)


@router.get("/startupz")
async def startupz(serving: Server) -> JSONResponse:
    """200 once the model has been loaded, with the time each phase took."""
    return _answer(serving, healthy=serving.health.phase is Phase.SERVING)


@router.get("/metrics", response_class=Response)
async def metrics(serving: Server) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(serving.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _answer(serving: Serving, *, healthy: bool) -> JSONResponse:
    body: dict[str, Any] = serving.health.report()
    return JSONResponse(body, 200 if healthy else 503)
