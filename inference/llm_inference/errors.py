"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}, whatever went wrong.

Knows HTTP status codes and how pydantic reports a bad request. Does not know what routes do.
"""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_TYPES = {
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
    504: "timeout",
}


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
        self.message = message
        self.param = param
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
    path = [str(part) for part in item["loc"][1:] if _names_a_parameter(part)]
    param = ".".join(path) or None
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


def _names_a_parameter(part: int | str) -> bool:
    """Whether part of an error's location is in the body: pydantic mixes in its own type names."""
    return isinstance(part, int) or (part.isidentifier() and part not in ("str", "int"))
