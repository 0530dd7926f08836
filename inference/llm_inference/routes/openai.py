"""All routes of the API, with the errors that each may answer with.

Knows which modules have routes, and nothing of what they do.
"""

from typing import Any

from fastapi import APIRouter

from llm_inference.errors import ErrorBody
from llm_inference.routes import chat, completions, embeddings, models, tokens

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "A parameter cannot be honoured; `param` names it"},
    401: {"model": ErrorBody, "description": "No API key of this server"},
    404: {"model": ErrorBody, "description": "Another model than the served one"},
    429: {"model": ErrorBody, "description": "The queue is full; see `Retry-After`"},
    503: {"model": ErrorBody, "description": "Loading, shutting down or failed"},
    "4XX": {"model": ErrorBody, "description": "The request cannot be served"},
    "5XX": {"model": ErrorBody, "description": "The server failed on this request"},
}

router = APIRouter(responses=_ERRORS)
for _module in (chat, completions, embeddings, models):
    router.include_router(_module.router, prefix="/v1", tags=["openai"])
router.include_router(tokens.router, tags=["tokens"])
router.include_router(models.info_router, tags=["operations"])
