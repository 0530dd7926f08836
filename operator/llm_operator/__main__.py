"""Entry point: `python -m llm_operator` runs the operator until it is told to stop."""

import logging
import os
import socket
import sys
from typing import Any

import kopf

from llm_operator import handlers
from llm_operator.settings import Settings, SettingsError

EXIT_BAD_SETTING = 2

_FORMATS = {"text": kopf.LogFormat.FULL, "json": kopf.LogFormat.JSON}


# They tell of every event that a handler took and of every probe; the controller tells what it did.
_CHATTY = ("aiohttp.access", "kopf.activities.probe", "kopf.objects")


def configure_logging(settings: Settings) -> None:
    """Log in the form and from the severity on that the settings ask for."""
    kopf.configure(log_format=_FORMATS[settings.log_format])
    logging.getLogger().setLevel(settings.log_level.upper())
    if settings.log_level != "debug":
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)


def main() -> int:
    """Run the operator. Returns the exit code."""
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        print(f"llm-operator: {error}", file=sys.stderr)
        return EXIT_BAD_SETTING
    configure_logging(settings)
    if settings.watch_nodes:
        handlers.watch_nodes()
    # kopf would take the user's name, and a numeric user of a container has none.
    host: Any = socket.gethostname()
    kopf.run(
        standalone=True,
        identity=host,
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
        liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz",
        memo=handlers.Operator(settings),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
