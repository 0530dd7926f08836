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


def main() -> int:
    """Run the operator. Returns the exit code."""
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        print(f"llm-operator: {error}", file=sys.stderr)
        return EXIT_BAD_SETTING
    kopf.configure(
        debug=settings.log_level == "debug",
        quiet=settings.log_level in {"warning", "error"},
        log_format=_FORMATS[settings.log_format],
    )
    if settings.log_level != "debug":
        # kopf tells of every event that a handler took; the controller tells what it did.
        logging.getLogger("kopf.objects").setLevel(logging.WARNING)
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
