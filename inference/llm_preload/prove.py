"""Proves that a model directory loads without a network, by loading it.

Knows transformers; does not know the server, so that a change of the server's code repeats nothing.
"""

import os
from pathlib import Path
from typing import Any

from llm_preload import PreloadError


def prove(directory: Path) -> str:
    """Load tokenizer, configuration and weights, and run one forward pass; describe the result.

    Weights that would fill more than half of the free memory are only compared by name and shape.

    Raises:
        PreloadError: Something is missing, does not fit together or gives no finite numbers.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    import torch  # noqa: PLC0415
    from jinja2 import TemplateError  # noqa: PLC0415
    from transformers import AutoConfig, AutoTokenizer  # noqa: PLC0415

    try:
        config = AutoConfig.from_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        if tokenizer.chat_template:
            tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
        automatic = _automatic_class(config)
        if _weight_bytes(directory) > _free_memory() / 2:
            return _prove_shapes(directory, automatic, config)
        model, report = automatic.from_pretrained(directory, output_loading_info=True)
        if missing := report["missing_keys"]:
            raise PreloadError(f"the weights lack {sorted(missing)[0]}")
        with torch.inference_mode():
            output = model(**tokenizer("The capital of France is", return_tensors="pt"))[0]
    except TemplateError as error:
        raise PreloadError(f"the chat template takes no user's message: {error}") from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        sentence = " ".join(str(error).split())
        raise PreloadError(f"the model does not load offline: {sentence}") from error
    if not torch.isfinite(output).all():
        raise PreloadError("the model gives numbers that are not finite")
    return f"{type(model).__name__}, {model.num_parameters():,} parameters, {model.dtype}"


def _prove_shapes(directory: Path, automatic: Any, config: Any) -> str:  # noqa: ANN401
    import torch  # noqa: PLC0415
    from safetensors import safe_open  # noqa: PLC0415

    with torch.device("meta"):
        model = automatic.from_config(config)
    held: dict[str, list[int]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            held |= {k: weights.get_slice(k).get_shape() for k in weights.keys()}  # noqa: SIM118
    tied = set(model.all_tied_weights_keys)
    for name, tensor in model.state_dict().items():
        if name not in tied and held.get(name) != list(tensor.shape):
            raise PreloadError(f"{name} should be {list(tensor.shape)}, is {held.get(name)}")
    return f"{type(model).__name__}, too large to load here: names and shapes compared"


def _automatic_class(config: Any) -> Any:  # noqa: ANN401
    from transformers import AutoModel, AutoModelForCausalLM  # noqa: PLC0415

    names = config.architectures or []
    causal = any(name.endswith(("ForCausalLM", "ForConditionalGeneration")) for name in names)
    return AutoModelForCausalLM if causal else AutoModel


def _weight_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def _free_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return int(values["MemAvailable"].split()[0]) * 1024
