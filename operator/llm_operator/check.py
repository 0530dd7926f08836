"""`python -m llm_operator.check URL`: whether an installation works. What `helm test` runs.

Asks, with the operator's own account, for the API and for LLMDeployments, and the operator itself
for its health. Writes nothing.
"""

import argparse
import asyncio
import sys

import aiohttp

from llm_operator import api
from llm_operator.kube import ApiError, Kube
from llm_operator.resources import LLM_DEPLOYMENT


async def check(health: str, namespaces: list[str]) -> list[str]:
    """What is wrong with the installation; empty if nothing is.

    Args:
        health: URL of the operator's health endpoint.
        namespaces: Namespaces that the operator serves; empty for all.
    """
    kube = await Kube.connect()
    try:
        problems = [await _readable(kube, namespace) for namespace in namespaces or [""]]
    finally:
        await kube.close()
    return [problem for problem in [*problems, await _healthy(health)] if problem]


async def _readable(kube: Kube, namespace: str) -> str | None:
    where = namespace or "all namespaces"
    try:
        await kube.list_all(LLM_DEPLOYMENT, namespace)
    except ApiError as error:
        return f"{api.PLURAL}.{api.GROUP} in {where}: {error.message}"
    print(f"{api.PLURAL}.{api.GROUP} in {where}: can be read")
    return None


async def _healthy(url: str) -> str | None:
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            answer = await session.get(url)
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"{url}: {error or 'no answer'}"
    if answer.status != 200:  # noqa: PLR2004
        return f"{url}: answered {answer.status}"
    print(f"{url}: healthy")
    return None


def main(argv: list[str] | None = None) -> int:
    """Check the installation and tell. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="llm_operator.check", description=__doc__)
    parser.add_argument("health", metavar="URL", help="the operator's health endpoint")
    parser.add_argument("--namespace", action="append", default=[], help="served namespace")
    arguments = parser.parse_args(argv)
    problems = asyncio.run(check(arguments.health, arguments.namespace))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
