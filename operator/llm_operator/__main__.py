"""Entry point: `python -m llm_operator` runs the operator until it is told to stop.

Exit codes: 0 told to stop, 1 a watch died or fell silent or an unforeseen error, 2 a wrong setting,
3 it led and could not prove it in time. All but 2 are mended by a restart.
"""

import asyncio
import logging
import os
import sys

from llm_operator import logs
from llm_operator.process import Exit, Process
from llm_operator.settings import Settings, SettingsError

logger = logging.getLogger("llm_operator")


async def _run(settings: Settings) -> Exit:
    return await Process(settings).run()


def main() -> int:
    """Run the operator. Returns the exit code."""
    try:
        settings = Settings.from_env(os.environ)
        logs.configure(settings.log_format, settings.log_level)
        return asyncio.run(_run(settings))
    except SettingsError as error:
        print(f"llm-operator: {error}", file=sys.stderr)
    except OSError as error:
        print(f"llm-operator: cannot begin: {error}", file=sys.stderr)
        return Exit.FAILED
    except Exception:  # in the form that the settings ask for
        logger.exception("cannot begin")
        return Exit.FAILED
    return Exit.BAD_SETTING


if __name__ == "__main__":
    sys.exit(main())
