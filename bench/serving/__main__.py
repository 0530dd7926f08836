"""Speed, memory and cold start of this server beside its peers, over HTTP on this machine.

    make bench
    make bench ARGS="--llama --publish"
    python -m bench.serving --llama-python PYTHON --gguf FILE
    python -m bench.serving --servers llm-inference --starts 0 --url other=http://127.0.0.1:8000

Serves the same model with each, one at a time and in turn, in one run. Prints a table in Markdown;
writes every figure with --json, a picture with --plot, and with --publish all three into docs/.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.serving import ROOT, llama, machine, memory, plot, report, scenarios, starts
from bench.serving.figures import Objective
from bench.serving.servers import Server, llama_cpp, llm_inference, transformers_serve
from dev import environment
from dev.stand_ins.cache import models

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DOCS = ROOT / "docs"
PAGE = DOCS / "performance.md"
PICTURE = DOCS / "serving.svg"
FIGURES = DOCS / "serving.json"
MARKS = ("<!-- bench.serving: begin -->", "<!-- bench.serving: end -->")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    top = argparse.ArgumentParser(
        prog="python -m bench.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--model", default=MODEL, help="model directory or id (%(default)s)")
    top.add_argument("--rounds", type=int, default=3, help="of all loads (%(default)s)")
    top.add_argument("--starts", type=int, default=5, help="cold starts of each (%(default)s)")
    top.add_argument(
        "--servers", default="llm-inference,transformers", help="of these two (%(default)s)"
    )
    top.add_argument(
        "--inference", type=Path, default=ROOT / "inference", help="source of our server"
    )
    top.add_argument(
        "--url", action="append", default=[], metavar="NAME=URL", help="one that runs already"
    )
    top.add_argument("--streams", type=int, default=16, help="of the large load (%(default)s)")
    top.add_argument("--tokens", type=int, default=64, help="of an answer (%(default)s)")
    top.add_argument("--ttft", type=float, default=2000, help="objective: ms (%(default)s)")
    top.add_argument("--itl", type=float, default=100, help="objective: ms a token (%(default)s)")
    top.add_argument("--extra", type=json.loads, default={}, help="fields of each body, in JSON")
    top.add_argument(
        "--llama", action="store_true", help="llama-cpp-python too, compiled the first time"
    )
    top.add_argument("--llama-python", type=Path, help="another Python that has llama-cpp-python")
    top.add_argument("--gguf", type=Path, help="the model that it serves")
    top.add_argument("--as-is", action="store_true", help="install and fetch nothing before")
    top.add_argument("--json", type=Path, help="file for every figure")
    top.add_argument("--plot", type=Path, help="file for a picture (SVG)")
    top.add_argument("--publish", action="store_true", help="write all of it into docs/")
    top.add_argument("--render", type=Path, metavar="JSON", help="measure nothing: show this run")
    return top


def chosen_servers(chosen: argparse.Namespace, directory: Path) -> list[Server]:
    """The servers that the flags name.

    Raises:
        ValueError: A flag that names none.
    """
    known = {
        "llm-inference": lambda: llm_inference(directory, chosen.model, chosen.inference),
        "transformers": lambda: transformers_serve(directory, chosen.streams),
    }
    names = [name for name in chosen.servers.split(",") if name]
    if unknown := set(names) - set(known):
        raise ValueError(f"no server {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    servers = [known[name]() for name in names]
    if (chosen.llama_python is None) != (chosen.gguf is None):
        raise ValueError("--llama-python and --gguf go together")
    if chosen.llama:
        if chosen.llama_python or chosen.as_is or chosen.model != MODEL:
            raise ValueError(f"--llama installs its own Python and GGUF file of {MODEL}")
        chosen.llama_python, chosen.gguf = llama.python(), llama.gguf()
    if chosen.llama_python is not None:
        servers.append(llama_cpp(chosen.llama_python, chosen.gguf))
    for given in chosen.url:
        name, found, url = given.partition("=")
        if not found:
            raise ValueError(f"--url {given}: NAME=http://127.0.0.1:PORT is meant")
        servers.append(Server(name, url=url, ready="/v1/models"))
    if not servers:
        raise ValueError("no server is named")
    return servers


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure all servers that were chosen.

    Raises:
        ValueError: A flag that names no server.
    """
    directory = Path(chosen.model)
    if not directory.is_dir():
        directory = models() / chosen.model
    servers = chosen_servers(chosen, directory)
    on = machine.describe()
    have = machine.versions(sys.executable)
    if chosen.llama_python:
        # Both may have a torch; the one of this environment is the one that serves.
        have = machine.versions(str(chosen.llama_python)) | have
    if on["load"] > machine.QUIET:
        print(f"load {on['load']}: others use this machine, figures will not hold", file=sys.stderr)
    starts.read_once(directory)
    objective = Objective(chosen.ttft / 1000, chosen.itl / 1000)
    sent = scenarios.loads(chosen.streams, chosen.tokens)
    measured = scenarios.measure(
        servers,
        sent=sent,
        objective=objective,
        rounds=chosen.rounds,
        cold_starts=chosen.starts,
        extra=chosen.extra,
    )
    for server in servers:
        measured["servers"][server.name]["weights"] = server.weights
    return {
        "taken": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(chosen.inference),
        "machine": on,
        "versions": have,
        "settings": {
            "model": chosen.model,
            "rounds": chosen.rounds,
            "starts": chosen.starts,
            "extra": chosen.extra,
            "objective": dataclasses.asdict(objective),
            "loads": {name: dataclasses.asdict(load) for name, load in sent.items()},
        },
        "cache": scenarios.cache_tokens(sent) * memory.cache_bytes_per_token(directory),
        **measured,
    }


def publish(document: dict[str, Any], page: Path = PAGE) -> None:
    """Put the table into the page, between its two marks, and the picture beside it."""
    begin, end = MARKS
    text = page.read_text()
    shown = f"{begin}\n\n{report.markdown(document)}\n\n{end}"
    pattern = re.escape(begin) + ".*" + re.escape(end)
    page.write_text(re.sub(pattern, lambda _: shown, text, count=1, flags=re.S))


def main() -> int:
    """Measure, or read what was measured, and show it."""
    top = parser()
    chosen = top.parse_args()
    if chosen.render:
        document = json.loads(chosen.render.read_text())
    else:
        if not chosen.as_is:
            prepare()
        try:
            document = measure(chosen)
        except ValueError as error:
            top.error(str(error))
    if chosen.publish:
        publish(document)
    for file in filter(None, (chosen.json, FIGURES if chosen.publish else None)):
        file.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    for file in filter(None, (chosen.plot, PICTURE if chosen.publish else None)):
        plot.draw(document, file)
    print(report.markdown(document))
    return 0


def prepare() -> None:
    """The environment, what the peer needs in it, and the model."""
    environment.prepare()
    lock = environment.LOCKS / "bench.txt"
    environment.install("--no-deps", "--require-hashes", f"--requirements={lock}")
    subprocess.run([sys.executable, "-m", "dev.stand_ins", "models"], check=True)


if __name__ == "__main__":
    sys.exit(main())
