"""Logs: one line for each event on stderr, as JSON or as text.

Knows how a line looks and which libraries write lines too. Does not know what is logged.
"""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

# The request that is being served, for what is logged meanwhile.
request_id: ContextVar[str] = ContextVar("request_id", default="")

_LIBRARIES = ("transformers", "huggingface_hub")


def configure(level: str, form: Literal["auto", "json", "text"]) -> None:
    """Write all logs to stderr in one form; `auto` is text for a terminal and JSON elsewhere."""
    handler = logging.StreamHandler(sys.stderr)
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(capture=True)
    for name in _LIBRARIES:
        if name not in logging.root.manager.loggerDict:
            _create(name, LibraryLogger)
    # uvicorn's own account of start and stop says less than ours, and HTTP clients', of whom the
    # hub's and the exporter's are two, is about each request.
    for name in ("uvicorn.error", "httpx", "httpcore", "urllib3"):
        logging.getLogger(name).setLevel(max(logging.root.level, logging.WARNING))


def _create(name: str, kind: type[logging.Logger]) -> None:
    usual = logging.getLoggerClass()
    logging.setLoggerClass(kind)
    try:
        logging.getLogger(name)
    finally:
        logging.setLoggerClass(usual)


class LibraryLogger(logging.Logger):
    """The logger of a library that would set up its own: it writes where all others do."""

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802 - logging's name
        """Do without a handler of its own."""

    @property
    def propagate(self) -> bool:
        """Whether lines go where all others do; they always do."""
        return True

    @propagate.setter
    def propagate(self, value: bool) -> None: ...


def fields(**values: object) -> dict[str, Any]:
    """`extra` of a log call: fields of their own in JSON, those that are None left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


class JsonFormatter(logging.Formatter):
    """A line of JSON: time, level, logger, message, and the fields of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := request_id.get():
            line["request_id"] = request
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """A line for people: the same, the fields as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line without an exception, which the base class appends."""
        extra = {**getattr(record, "fields", {})}
        if request := request_id.get():
            extra.setdefault("request_id", request)
        parts = [super().formatMessage(record), *(f"{k}={v}" for k, v in extra.items())]
        return " ".join(parts)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802, ARG002
        """The time, as in JSON."""
        return _time(record)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
