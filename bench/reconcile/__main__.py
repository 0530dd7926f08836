"""Speed and cost of the operator with many LLMDeployments on a real control plane.

    python -m bench.reconcile --count 1000

Runs the operator as a process of this machine against the development cluster, in a namespace of
its own that is removed afterwards; pods run on fake nodes, so that nothing but the operator and
the control plane has work. Prints a table in Markdown, and with --json writes every figure.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.reconcile import floor, phases, process, report
from bench.reconcile.cluster import KINDS, LLM_DEPLOYMENT, Cluster
from bench.reconcile.phases import Latency, Run, percentile
from dev.cluster import kubectl, paths

OBJECTS = "deployments,services,networkpolicies"
"""What every LLMDeployment has one of, if its spec says nothing else."""

CRD = f"{LLM_DEPLOYMENT.plural}.{LLM_DEPLOYMENT.group_version.partition('/')[0]}"
CRDS = process.ROOT / "deploy" / "crds"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    top = argparse.ArgumentParser(prog="python -m bench.reconcile", description=__doc__)
    top.add_argument("--count", type=int, default=100, help="LLMDeployments (%(default)s)")
    top.add_argument(
        "--rate", type=float, default=0, help="created a second; kubectl does about 40 (unbounded)"
    )
    top.add_argument("--kinds", default=OBJECTS, help="objects awaited for each (%(default)s)")
    top.add_argument("--pending", action="store_true", help="no node fits: pods stay pending")
    top.add_argument(
        "--floor", action="store_true", help="no operator at work: what the control plane takes"
    )
    top.add_argument("--idle", type=float, default=60, help="seconds of idling (%(default)s)")
    top.add_argument("--samples", type=int, default=100, help="changes of one spec (%(default)s)")
    top.add_argument("--within", type=float, default=600, help="bound of a phase (%(default)s s)")
    top.add_argument("--operator", type=Path, default=process.ROOT / "operator")
    top.add_argument("--json", type=Path, help="file for all figures")
    top.add_argument("--log", type=Path, help="file for the operator's log")
    return top


async def measure(chosen: argparse.Namespace) -> None:
    """All phases of one run; the figures are told before what it made is removed."""
    namespace = f"bench-{uuid.uuid4().hex[:6]}"
    kinds = [KINDS[plural] for plural in chosen.kinds.split(",") if plural]
    nodes = 0 if chosen.pending else chosen.count
    async with (
        Cluster.connect(paths.KUBECONFIG) as cluster,
        cluster.nodes_for(namespace, nodes),
        cluster.run_in(namespace) as kubeconfig,
    ):
        with tempfile.TemporaryDirectory() as folder:
            async with process.running(
                namespace,
                kubeconfig=kubeconfig,
                source=chosen.operator.resolve(),
                folder=Path(folder),
            ) as operator:
                run = Run(
                    cluster, operator, namespace, chosen.count, kinds, chosen.within, chosen.rate
                )
                try:
                    tell(await _phases(run, chosen), chosen)
                finally:
                    if chosen.log:
                        chosen.log.write_bytes(operator.log.read_bytes())


async def _phases(run: Run, chosen: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"count": chosen.count, "rss_before": run.operator.rss}
    if chosen.floor:
        figures["floor"] = dataclasses.asdict(await floor.floor(run))
        return figures
    if chosen.pending:
        figures["pending"] = dataclasses.asdict(await phases.pend(run))
    else:
        figures["converged"] = dataclasses.asdict(await phases.converge(run))
    if chosen.idle:
        figures["idle"] = dataclasses.asdict(await phases.idle(run, chosen.idle))
    if chosen.samples and not chosen.pending:
        figures["latency"] = _percentiles(await phases.change(run, chosen.samples))
    return figures


def tell(figures: dict[str, Any], chosen: argparse.Namespace) -> None:
    """Print the table, and write the file if one is asked for."""
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2))
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {load:.1f}\n", flush=True)
    print(report.table(figures), flush=True)


def _percentiles(latency: Latency) -> Mapping[str, float]:
    return {
        f"{name}_p{percent}": percentile(values, percent)
        for name, values in dataclasses.asdict(latency).items()
        for percent in (50, 99)
    }


def main() -> int:
    """Measure and print."""
    chosen = parser().parse_args()
    if not paths.KUBECONFIG.exists():
        print("no cluster: run `make up` first", file=sys.stderr)
        return 1
    if not kubectl.kubectl("get", "crd", "--ignore-not-found", "-o", "name", CRD):
        kubectl.kubectl("apply", "--server-side", "-f", str(CRDS))
    # Told to stop by whatever signal, it still removes its namespace and its nodes.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    asyncio.run(measure(chosen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
