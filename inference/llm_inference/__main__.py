"""`python -m llm_inference`: serve the model of this container; `... check`: prove it loads.

Exit codes: 0 after SIGTERM, 2 for a bad setting, 3 for a model that cannot be served. The last
line on stderr says why.
"""

import gc
import os
import signal
import sys

from llm_inference import orphans

# As a container's first process, a signal without a handler would be lost, and imports take time.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
orphans.adopt()

# Must be set before torch loads OpenMP. A decode step joins its threads hundreds of times, and by
# default they spin while they wait. Measured with SmolLM2 on 2 cores: not spinning costs a step
# roughly a quarter or more on idle processors and makes it 1.4 to 6 times shorter at the median
# where others want the same ones. A pod shares its node, so the default is not to spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

BAD_SETTING, LOAD_FAILED = 2, 3


def main(arguments: list[str]) -> int:
    """Run the command that `arguments` name; returns the exit code."""
    # What imports make stays: looking for garbage in it takes a tenth of a start.
    gc.disable()
    from llm_inference.settings import SettingsError, load_settings  # noqa: PLC0415

    if arguments not in ([], ["check"]):
        sys.stderr.write("usage: python -m llm_inference [check]\n")
        return BAD_SETTING
    try:
        settings = load_settings()
        if arguments == ["check"]:
            from llm_inference import check  # noqa: PLC0415

            _keep_imports()
            failure = check.run(settings)
        else:
            from llm_inference import server  # noqa: PLC0415

            _keep_imports()
            failure = server.run(settings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_SETTING
    if failure is not None:
        sys.stderr.write(f"{failure}\n")
        return LOAD_FAILED
    return 0


def _keep_imports() -> None:
    """Collect garbage from now on, but not among what there is."""
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # A loading thread inside a library cannot be stopped, and the process must not wait for it.
    os._exit(code)
