"""What a cold start imports, and that torch's compiler is only held back, not broken."""

import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

# Arithmetic on the meta device, where transformers makes a model, still needs sympy.
HEAVY = ("torch._dynamo", "torch._inductor", "torch.onnx", "sklearn", "pandas")
NOT_AT_START = (
    *HEAVY,
    "huggingface_hub",
    "llguidance",
    "mpmath",
    "networkx",
    "numpy",
    "opentelemetry.exporter",
    "opentelemetry.sdk",
    "safetensors",
    "sympy",
    "torch",
    "transformers",
    "triton",
)
# What a start on a card imports torch without.
LEFT_OUT_OF_TORCH = (
    "torch._decomp",
    "torch._dynamo",
    "torch._export",
    "torch._meta_registrations",
    "torch._prims",
    "torch._refs",
    "torch.export",
    "sympy",
)
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}


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


@pytest.fixture
def small_model(tmp_path):
    """A directory with a Llama of random weights and a tokenizer."""
    config = AutoConfig.for_model("llama", **SIZES, num_attention_heads=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    vocabulary = {chr(ord("A") + number): number for number in range(64)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="A"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "TokenizersBackend", "chat_template": "{{ messages }}"}'
    )
    return tmp_path


def test_a_server_serves_without_importing_what_is_heavy(small_model):
    code = (
        "import asyncio, os, sys\n"
        f"os.environ['LLM_MODEL_DIR'] = {str(small_model)!r}\n"
        "import llm_inference.server\n"
        "from llm_inference.engine.interface import GenerationRequest, SamplingParams\n"
        "from llm_inference.health import Health\n"
        "from llm_inference.serving import Serving, load_engine\n"
        "from llm_inference.settings import load_settings\n"
        "async def main():\n"
        "    serving = Serving(load_settings(), Health(started_at=0))\n"
        "    engine = await asyncio.to_thread(load_engine, serving)\n"
        "    prompt = engine.codec.encode_chat([{'role': 'user', 'content': 'A'}])\n"
        "    penalties = SamplingParams(top_p=0.9, frequency_penalty=0.5, logit_bias={3: 1.0})\n"
        "    for sampling in (SamplingParams(), penalties):\n"
        "        request = GenerationRequest(\n"
        "            prompt=prompt, max_tokens=3, sampling=sampling, logprobs=2\n"
        "        )\n"
        "        events = [event async for event in engine.submit(request)]\n"
        "        assert events[-1].error is None\n"
        "    await engine.close()\n"
        "asyncio.run(main())\n"
        f"print([m for m in {NOT_AT_START} if m in sys.modules])\n"
    )
    assert run(code) == ["[]"]


def test_torch_is_imported_without_what_only_exporting_needs():
    code = (
        "from llm_lean.importing import import_torch\n"
        "import_torch()\n"
        "import sys, llm_inference.engine.cuda_runner\n"
        f"print([m for m in {LEFT_OUT_OF_TORCH} if m in sys.modules])\n"
    )
    assert run(code) == ["[]"]


def test_what_torch_was_imported_without_is_there_for_who_asks_later():
    code = (
        "from llm_lean.importing import import_torch\n"
        "import_torch()\n"
        "import sys, torch\n"
        "assert 'torch.export' not in sys.modules\n"
        "assert callable(torch.export.export)\n"
        "assert 'torch.export' in sys.modules\n"
        "import torch._meta_registrations\n"
        "print(hasattr(torch._meta_registrations, 'meta_bernoulli'),"
        " torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item())"
    )
    assert run(code) == ["True", "2.0"]


def test_torch_is_whole_before_transformers_makes_a_model():
    code = (
        "from llm_lean.importing import import_torch\n"
        "import_torch()\n"
        "import sys, torch, llm_inference.engine.pretrained\n"
        "print('torch._meta_registrations' in sys.modules, 'torch.export' in sys.modules)"
    )
    assert run(code) == ["True", "True"]


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
        "from llm_lean.compiler import without_compiler\n"
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
        "from llm_lean.compiler import without_compiler\n"
        "with without_compiler():\n"
        "    import torchvision\n"
        "print(callable(torchvision.is_compile_supported))"
    )
    assert run(code) == ["True"]
