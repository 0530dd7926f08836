"""What a cold start imports, and that torch's compiler is only held back, not broken."""

import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

# Arithmetic on the meta device, where transformers makes a model, still needs sympy.
HEAVY = ("torch._dynamo", "torch._inductor", "torch.onnx", "sklearn", "pandas")


def run(code):
    result = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"},
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_the_application_is_imported_without_torch():
    assert run("import sys, llm_inference.server; print('torch' in sys.modules)") == ["False"]


def test_the_engine_knows_nothing_of_http():
    code = (
        "import sys, llm_inference.engine.loader;"
        "print([m for m in ('fastapi', 'starlette', 'uvicorn') if m in sys.modules])"
    )
    assert run(code) == ["[]"]


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_loading_a_model_needs_no_compiler(tmp_path, family):
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = AutoConfig.for_model(family, **sizes, num_attention_heads=2)
    auto = AutoModelForCausalLM if family == "llama" else AutoModel
    auto.from_config(config).save_pretrained(tmp_path)
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from llm_inference.engine import directory, pretrained\n"
        f"checked = directory.inspect(Path({str(tmp_path)!r}))\n"
        "model = pretrained.load_pretrained(checked, dtype='auto', quantization='none',"
        " device=torch.device('cpu'))\n"
        "assert model(input_ids=torch.tensor([[1, 2]]))[0].isfinite().all()\n"
        f"print([m for m in {HEAVY} if m in sys.modules])\n"
    )
    assert run(code) == ["[]"]


def test_the_real_compiler_is_there_for_who_asks_later():
    code = (
        "import torch, llm_inference.engine.pretrained;"
        "f = torch.compile(lambda x: x + 1, backend='eager');"
        "print(f(torch.ones(1)).item(), hasattr(torch._dynamo, 'optimize'),"
        " torch.compiler.disable.__module__)"
    )
    assert run(code) == ["2.0", "True", "torch.compiler"]


def test_whatever_else_is_asked_of_the_compiler_meanwhile_is_the_real_thing():
    code = (
        "import torch\n"
        "from llm_inference.engine.lean_imports import without_compiler\n"
        "with without_compiler():\n"
        "    import torch._dynamo\n"
        "    print(callable(torch._dynamo.optimize))\n"
        "print(callable(torch._dynamo.reset))\n"
    )
    assert run(code) == ["True", "True"]


def test_a_package_that_imports_the_compiler_itself_gets_the_real_one(tmp_path, monkeypatch):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from torch._dynamo.utils import is_compile_supported\n")
    monkeypatch.syspath_prepend(tmp_path)
    code = (
        "from llm_inference.engine.lean_imports import without_compiler\n"
        "with without_compiler():\n"
        "    import torchvision\n"
        "print(callable(torchvision.is_compile_supported))"
    )
    assert run(code) == ["True"]
