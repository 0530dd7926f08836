"""The form of log messages, and which object they are about.

Knows text and JSON, and puts the key of the object that is being worked on into every message
that is logged meanwhile, whoever logs it. Does not know what is logged.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

Key = tuple[str, str]

_about: ContextVar[Key | None] = ContextVar("about", default=None)

# Tells of every event that a handler took; the controller tells what it did.
_CHATTY = ("kopf.objects",)

_TEXT = "[%(asctime)s] %(name)-20.20s [%(levelname)-8.8s] %(message)s"


@contextmanager
def about(key: object) -> Iterator[None]:
    """Whatever is logged inside is about the object `key`: namespace and name."""
    match key:
        case (str(namespace), str(name)):
            token = _about.set((namespace, name))
        case _:
            token = _about.set(None)
    try:
        yield
    finally:
        _about.reset(token)


def configure(form: Literal["text", "json"], level: str) -> None:
    """Log to stderr in this form and from this severity on, whatever else was configured."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_name_object)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(_TEXT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    logging.captureWarnings(capture=True)


class TextFormatter(logging.Formatter):
    """One line, that begins with the object's key; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line."""
        prefix = _prefix(record)
        if not record.message.startswith(prefix):
            record.message = prefix + record.message
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object on one line, the traceback inside.

    Fields: `time` (RFC 3339, UTC), `level`, `logger`, `message`, `namespace` and `name` of the
    object if it is about one, `exception` if there is one.
    """

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if key := getattr(record, "about", None):
            fields |= {"namespace": key[0], "name": key[1]}
            fields["message"] = fields["message"].removeprefix(_prefix(record))
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            fields["exception"] = record.exc_text
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


def _name_object(record: logging.LogRecord) -> bool:
    """Give the record the key of its object; kopf brings it along in a form of its own."""
    reference = getattr(record, "k8s_ref", None)
    if reference:
        record.about = (reference.get("namespace") or "", reference.get("name") or "")
    else:
        record.about = _about.get()
    return True


def _prefix(record: logging.LogRecord) -> str:
    key = getattr(record, "about", None)
    return "/".join(part for part in key if part) + ": " if key else ""
