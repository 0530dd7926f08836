"""What the images hold and, more so, what they do not."""

import json

from dev.stand_ins import torch_wheel
from dev.stand_ins.reach import Real, is_reachable

COMPILERS = ("gcc", "g++", "cc", "c++", "clang", "ld", "as", "make", "cmake", "nvcc", "rustc", "go")
LEFT_BEHIND = "-name '*.whl' -o -path '*/.cache/*' -o -path '*/pip/_internal*' -o -name 'ensurepip'"


def test_the_user_is_numeric_and_not_root(image):
    if image.reference.startswith("localhost/llm-weights"):
        return  # holds files alone: nothing runs in it
    assert image.config["config"]["User"] == "65532:0"
    assert image.shell("id -u; id -g").split() == ["65532", "0"]


def test_any_other_user_works_too(cpu):
    options = ("--user", "1234567:0")
    assert cpu.shell("id -u && test -r /model/config.json", options=options) == "1234567"
    assert cpu.python("import torch, llm_inference; print(1)", options=options) == "1"


def test_only_tmp_can_be_written(server, operator):
    finds = "find / -xdev -perm -0002 ! -type l ! -path '/tmp*' 2>/dev/null || :"
    for image in (server, operator):
        assert set(image.shell(finds).split()) <= {"/run/lock", "/var/tmp"}
    tries = "touch /tmp/a && ! touch /model/a /opt/app/a /opt/venv/a 2>/dev/null"
    assert server.shell(tries) == ""


def test_no_compiler(server, operator):
    for image in (server, operator):
        found = image.shell(f"for c in {' '.join(COMPILERS)}; do command -v $c || :; done")
        assert found == ""


def test_no_pip_and_no_package_cache(server, operator):
    for image in (server, operator):
        assert image.shell("command -v pip pip3 uv || :") == ""
        left = image.shell(f"find / -xdev \\( {LEFT_BEHIND} \\) 2>/dev/null || :")
        assert left == ""
        assert image.shell("ls /var/lib/apt/lists/ | grep -v -e lock -e partial || :") == ""


def test_the_servers_say_how_they_run(server):
    config = server.config["config"]
    assert config["Entrypoint"] == ["python", "-m", "llm_inference"]
    assert list(config["ExposedPorts"]) == ["8080/tcp"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][:3] == ["CMD", "python", "-c"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["Labels"]["dev.llm-operator.target"] in server.reference


def test_the_operator_carries_no_torch_and_the_servers_no_kopf(server, operator):
    asks = "import importlib.util as u; print([n for n in ('torch', 'kopf') if u.find_spec(n)])"
    assert operator.python(asks) == "['kopf']"
    assert server.python(asks) == "['torch']"


def test_a_code_change_is_the_last_and_a_small_layer(server, operator):
    for image in (server, operator):
        assert image.manifest["layers"][-1]["size"] < 2_000_000
        commands = [line["created_by"] for line in image.config["history"]]
        copies = [command for command in commands if command.startswith("COPY")]
        assert "/opt/app" in copies[-1]
        assert "/opt/venv" in copies[0]


def test_everything_that_is_imported_is_compiled(server):
    code = """
import importlib.util, sys, torch, transformers, fastapi, llm_inference, json
held = [m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
from pathlib import Path
sources = [f for f in held if f.startswith("/") and f.endswith(".py")]
print(json.dumps([f for f in sources if not Path(importlib.util.cache_from_source(f)).exists()]))
"""
    assert json.loads(server.python(code)) == []


def test_the_cpu_images_hold_no_cuda_library(cpu):
    names = r"-name '*cu[dbfsprt]*.so*' -o -name '*nccl*.so*' -o -name '*nv[rjst]*.so*'"
    found = cpu.shell(f"find /opt/venv -type f \\( {names} \\) -printf '%f %s\\n'").splitlines()
    sizes = {name: int(size) for name, size in (line.split() for line in found)}
    assert "nvidia" not in cpu.shell("ls /opt/venv/lib/python3.13/site-packages")
    if is_reachable(Real.TORCH_CPU):
        assert sizes == {}
        return
    # The stand-in links two small ones, and stubs have the names of others.
    assert set(sizes) == {
        "libcudart.so.13",
        "libcupti.so.13",
        "libc10_cuda.so",
        *torch_wheel.STUBS,
    }
    assert sum(sizes.values()) < 12_000_000


def test_the_gpu_image_asks_for_the_driver_and_holds_cuda(gpu):
    environment = dict(pair.split("=", 1) for pair in gpu.config["config"]["Env"])
    assert environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert gpu.python("import torch; print(torch.version.cuda)").startswith("13.")
