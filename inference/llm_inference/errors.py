"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}, whatever went wrong.

Knows HTTP status codes and how pydantic reports a bad request. Does not know what routes do.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

_TYPES = {
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
    504: "timeout",
}

_LONGEST = 1000


class ErrorDetail(BaseModel):
    """What went wrong: a sentence, its kind, the parameter at fault and a code, if there are."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        message: a sentence for the client.
        param: the parameter at fault.
        code: OpenAI's machine-readable code, if it has one.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        # What is quoted from a request may be long, and may not be Unicode.
        self.message = _printable(message)
        self.param = None if param is None else _printable(param)
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The whole response."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def _printable(text: str) -> str:
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return text.encode("utf-8", "replace").decode()


def add_handlers(app: FastAPI) -> None:
    """Make every error of `app` leave it in OpenAI's shape."""

    async def api_error(_request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, ApiError):
            raise error
        return error.response()

    async def validation_error(_request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, RequestValidationError):
            raise error
        return _from_validation(error).response()

    async def http_error(_request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, HTTPException):
            raise error
        detail = error.detail
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"There is no {_request.method} {_request.url.path} here."
        headers = dict(error.headers) if error.headers else None
        return ApiError(error.status_code, detail, headers=headers).response()

    async def unexpected(_request: Request, _error: Exception) -> JSONResponse:
        return ApiError(500, "The server failed on this request.").response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)


def _from_validation(error: RequestValidationError) -> ApiError:
    """The first thing wrong with the body, as one sentence."""
    item = error.errors()[0]
    param = ".".join(_path(item["loc"][1:], error.body)) or None
    kind = item["type"]
    if kind == "extra_forbidden":
        return ApiError(
            400, f"Unrecognized request argument: {param}.", param=param, code="unknown_parameter"
        )
    if kind == "missing":
        what = f"the parameter {param}" if param else "a JSON body"
        return ApiError(400, f"The request lacks {what}.", param=param, code="missing_parameter")
    if kind == "json_invalid":
        reason = item.get("ctx", {}).get("error", "it cannot be parsed")
        return ApiError(400, f"The body is not valid JSON: {reason}.")
    message = item["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        # Our own validators name the parameter where pydantic only knows the object.
        cause = item.get("ctx", {}).get("error")
        param = getattr(cause, "param", None) or param
        return ApiError(400, message, param=param, code="invalid_value")
    return ApiError(400, f"{param}: {message}." if param else f"{message}.", param=param)


def _path(location: Sequence[int | str], body: object) -> list[str]:
    """The parts of an error's location that are in the body: pydantic adds types and tags."""
    path: list[str] = []
    for place, part in enumerate(location):
        last = place == len(location) - 1
        if isinstance(body, dict) and (part in body or last):
            path.append(str(part))  # the last one may be what is missing
            body = body.get(part)
        elif isinstance(body, list) and isinstance(part, int) and part < len(body):
            path.append(str(part))
            body = body[part]
    return path
