"""GET /v1/models and /info: what is served, and how. Knows what `Serving` knows."""

import sys
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter

from llm_inference import __version__
from llm_inference.engine.interface import GenerationEngine
from llm_inference.routes.engines import any_engine, check_model
from llm_inference.routes.state import Server
from llm_inference.schemas.models import Info, ModelCard, ModelList
from llm_inference.serving import Serving
from llm_inference.tool_formats import detect

router = APIRouter()
info_router = APIRouter()
_LIBRARIES = ("torch", "transformers", "tokenizers", "llguidance", "fastapi", "uvicorn")


@router.get("/models")
async def models(serving: Server) -> ModelList:
    """The one model that is served."""
    return ModelList(data=[_card(serving)])


@router.get("/models/{name:path}")
async def model(name: str, serving: Server) -> ModelCard:
    """The served model by its name."""
    check_model(serving, name)
    return _card(serving)


@info_router.get("/info")
async def info(serving: Server) -> Info:
    """What is served, how, and by what."""
    engine = any_engine(serving)
    report = serving.health.report()
    generates = isinstance(engine, GenerationEngine)
    return Info(
        model=serving.model_name,
        root=serving.model_root,
        revision=report["model"].get("revision"),
        task="generate" if generates else "embed",
        device=report["device"],
        quantization=report["quantization"],
        max_length=engine.capacity.max_length,
        max_concurrency=engine.capacity.max_concurrency,
        max_queue=engine.capacity.max_queue,
        vocabulary=engine.capacity.vocabulary,
        versions=_versions(),
        features=_features(engine) if isinstance(engine, GenerationEngine) else {"embed": True},
    )


def _card(serving: Serving) -> ModelCard:
    return ModelCard(
        id=serving.model_name,
        created=serving.created,
        owned_by=serving.model_root.partition("/")[0],
        root=serving.model_root,
        max_model_len=any_engine(serving).capacity.max_length,
    )


def _features(engine: GenerationEngine) -> dict[str, bool]:
    codec = engine.codec
    return {
        "chat": codec.has_chat_template,
        "completions": True,
        "grammars": True,
        "logprobs": True,
        "tools": detect(codec.chat_template) is not None,
    }


def _versions() -> dict[str, str]:
    """Versions as installed: none of these is imported for it."""
    found = {"llm-inference": __version__, "python": sys.version.split()[0]}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
