"""What routes are handed: the `Serving` of the application they belong to."""

from typing import Annotated

from fastapi import Depends, Request

from llm_inference.serving import Serving


def _serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


Server = Annotated[Serving, Depends(_serving)]
