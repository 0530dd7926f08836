"""`make demo`: a cluster, the images, the chart, an LLMDeployment, a question answered.

Knows the order and shows it. Does not know how any part is made: each is a command of its own,
and the steps that touch Kubernetes are the very commands a user would type.
"""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.cluster import paths, tools
from dev.cluster.progress import say

ROOT = Path(__file__).parents[2]
NAMESPACE = "llm-operator-system"
QUESTION = "What is the capital of France?"
CHART = "deploy/helm/llm-operator"
EXAMPLE = "examples/smollm2.yaml"
DEPLOYMENT = "llmdeployment/smollm2"
READY_WITHIN = 300


class DemoError(Exception):
    """A step failed; what it printed stands above."""


def main() -> int:
    """Run the steps.

    Returns:
        0 when the model answered, 1 when a step failed.
    """
    began = time.monotonic()
    try:
        with stage("1/4  A Kubernetes cluster on this machine"):
            run("python3", "-m", "dev.cluster", "up")
        with stage("2/4  The operator's image, and the model's"):
            run("python3", "-m", "dev.images", "build", "operator", "smollm2-cpu")
        with stage("3/4  The chart"):
            install()
        with stage("4/4  An LLMDeployment"):
            deploy()
        answer = ask()
    except DemoError as error:
        say(f"\n{error}")
        return 1
    say(f"\n$ kubectl get llmdeployments\n{kubectl('get', 'llmdeployments')}")
    say(f"Q: {QUESTION}\nA: {answer}\n\nFrom nothing to an answer in {seconds_since(began)}.")
    say(f"\n{HOW_TO_GO_ON}")
    return 0


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Frame one part of the demonstration with its title and time."""
    say(f"\n── {title}")
    began = time.monotonic()
    yield
    say(f"── done in {seconds_since(began)}")


def seconds_since(began: float) -> str:
    """The time since ``began`` as a person says it."""
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def run(*command: str) -> None:
    """Run a command with its output on the terminal.

    Raises:
        DemoError: It exited non-zero.
    """
    done = subprocess.run(command, cwd=ROOT, env=tools.environment(), check=False)
    if done.returncode:
        raise DemoError(f"`{' '.join(command)}` exited {done.returncode}")


def show(program: str, *arguments: str) -> None:
    """Print a command as a user would type it, then run it against the cluster."""
    say(f"$ {program} {' '.join(arguments)}")
    run(program, *arguments, f"--kubeconfig={paths.KUBECONFIG}")


def kubectl(*arguments: str) -> str:
    """What kubectl prints."""
    command = [str(tools.path("kubectl")), f"--kubeconfig={paths.KUBECONFIG}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def install() -> None:
    """Install or upgrade the chart and wait for the operator."""
    chart = ("upgrade", "--install", "llm-operator", CHART, "--namespace", NAMESPACE)
    values = ("--create-namespace", "--values", "dev/demo/values.yaml")
    show("helm", *chart, *values, "--wait", "--timeout", "2m", "--hide-notes")


def deploy() -> None:
    """Apply the example and wait until it serves; on failure show why, as `describe` would."""
    show("kubectl", "apply", "-f", EXAMPLE)
    try:
        wait = f"--timeout={READY_WITHIN}s"
        show("kubectl", "wait", "--for=condition=Ready", DEPLOYMENT, wait)
    except DemoError:
        show("kubectl", "describe", DEPLOYMENT)
        raise


def ask() -> str:
    """Send one chat completion through a port-forward, as from a laptop.

    Raises:
        DemoError: The port-forward did not come up or the server refused.
    """
    command = [str(tools.path("kubectl")), f"--kubeconfig={paths.KUBECONFIG}", "port-forward"]
    forward = subprocess.Popen(
        [*command, "service/smollm2", ":80"], stdout=subprocess.PIPE, text=True
    )
    try:
        # kubectl says: Forwarding from 127.0.0.1:<port it chose> to 8080
        line = forward.stdout.readline() if forward.stdout else ""
        if "127.0.0.1:" not in line:
            raise DemoError(f"kubectl port-forward said {line!r}")
        return complete(f"http://{line.split()[2]}")
    finally:
        forward.terminate()
        forward.wait(timeout=10)


def complete(url: str) -> str:
    """One greedy answer to the question."""
    body = {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 64,
    }
    request = urllib.request.Request(  # noqa: S310 (the URL is our own loopback address)
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        content: str = json.load(answer)["choices"][0]["message"]["content"]
    return content.strip()


HOW_TO_GO_ON = f"""\
The cluster keeps running. To go on:
  export KUBECONFIG={paths.KUBECONFIG}
  export PATH={tools.bin_folder()}:$PATH
  kubectl port-forward service/smollm2 8080:80     then talk to http://localhost:8080/v1
  kubectl describe llmdeployment smollm2
To stop:
  make down      stop everything; images and build cache stay for the next time
  make clean     remove them too"""

if __name__ == "__main__":
    sys.exit(main())
