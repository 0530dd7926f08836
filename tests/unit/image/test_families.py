"""Which families of models stay: those that read text, and what they are made of."""

import importlib
from pathlib import Path

import pytest
import transformers
from transformers.models.auto import modeling_auto

from llm_image import ImageError, families

MODELS = Path(transformers.__file__).parent / "models"


@pytest.fixture(scope="module")
def removed():
    return {path.relative_to(MODELS).as_posix() for path in families.surplus(MODELS)}


def test_families_that_write_text_stay(removed):
    for kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        module = importlib.import_module("transformers.models.auto.configuration_auto")
        name = module.model_type_to_module_name(kind)
        assert not [path for path in removed if path.startswith(f"{name}/")], kind


def test_families_that_encode_text_stay(removed):
    for name in ("bert", "mpnet", "xlm_roberta", "modernbert", "nomic_bert", "t5"):
        assert (MODELS / name).is_dir(), name
        assert not [path for path in removed if path.startswith(f"{name}/")], name


def test_what_a_family_that_stays_also_sees_with_stays(removed):
    # Gemma 3 is in the list of those that write text, and sees with SigLIP's vision part.
    names = {path.split("/")[0] for path in removed}
    assert "gemma3" not in names
    assert not {path for path in removed if path == "siglip/modeling_siglip.py"}


def test_others_keep_what_automatic_classes_look_through(removed):
    assert "whisper/modeling_whisper.py" in removed or "wav2vec2/modeling_wav2vec2.py" in removed
    kept = ("configuration_", "tokenization_", "__init__")
    assert not [path for path in removed if path.split("/")[1].startswith(kept)]


def test_lists_that_have_moved_are_told(tmp_path):
    (tmp_path / "auto").mkdir()
    (tmp_path / "auto" / "__init__.py").write_text("")
    with pytest.raises(ImageError, match="mend llm_image"):
        list(families.surplus(tmp_path))
