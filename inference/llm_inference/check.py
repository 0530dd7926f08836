"""`python -m llm_inference check`: load the model offline and let it work once.

An image build runs this as proof that what it packed can be served.
"""

import asyncio
import json
import logging
import sys
import time

from llm_inference.engine.directory import ModelLoadError
from llm_inference.engine.interface import (
    EngineError,
    GenerationEngine,
    GenerationRequest,
    SamplingParams,
)
from llm_inference.health import Health
from llm_inference.serving import Serving, load_engine
from llm_inference.settings import Settings


def run(settings: Settings) -> str | None:
    """Print one line of JSON about the model; the reason if it cannot be served."""
    logging.basicConfig(stream=sys.stderr, level=settings.log_level.upper())
    started = time.monotonic()
    try:
        return asyncio.run(_check(settings, started))
    except (ModelLoadError, EngineError) as error:
        return str(error)


async def _check(settings: Settings, started: float) -> str | None:
    serving = Serving(settings, Health(started_at=started))
    engine = await asyncio.to_thread(load_engine, serving)
    report = serving.health.report()
    result = {
        "model": report["model"],
        "device": report["device"],
        "maxLength": engine.capacity.max_length,
    }
    if isinstance(engine, GenerationEngine):
        prompt = engine.codec.encode("The capital of France is")
        request = GenerationRequest(
            prompt=prompt, max_tokens=1, sampling=SamplingParams(temperature=0)
        )
        events = [event async for event in engine.submit(request)]
        if events[-1].error is not None:
            return events[-1].error
        result |= {"task": "generate", "text": "".join(event.text for event in events)}
    else:
        vectors = (await engine.embed(["The capital of France is Paris."])).vectors
        result |= {"task": "embed", "dimensions": len(vectors[0])}
    await engine.close()
    sys.stdout.write(json.dumps({**result, "seconds": round(time.monotonic() - started, 3)}) + "\n")
    return None
