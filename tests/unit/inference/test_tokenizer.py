"""Tokenizers read without transformers give what transformers' own give, or are left to it."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoTokenizer

from llm_inference.engine.codec import HuggingFaceCodec
from llm_inference.engine.tokenizer import UnknownTokenizerError, read_tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TEXTS = [
    "Hello world, hello again!  Two spaces.",
    "Zwölf Boxkämpfer 日本語 🙂 <|im_start|>user\nHi<|im_end|>",
    " leading and trailing ",
    "1234567 x = y + 3;\n\tindented",
    "",
]


def byte_level():
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def save(directory, tokenizer, **config):
    tokenizer.save(str(directory / "tokenizer.json"))
    AutoConfig.for_model("llama").save_pretrained(directory)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize("name", ["TokenizersBackend", "PreTrainedTokenizerFast", "LlamaTokenizer"])
def test_token_ids_and_special_tokens_equal_those_of_transformers(tmp_path, name):
    directory = save(tmp_path, byte_level(), tokenizer_class=name, **NAMED, pad_token=None)
    direct = read_tokenizer(directory)
    theirs = AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        assert direct.backend_tokenizer.encode(text).ids == theirs.encode(text)
    assert direct.special_tokens == theirs.special_tokens_map
    assert direct.eos_token_id == theirs.eos_token_id == 2


def test_tokens_named_by_the_older_file_are_read(tmp_path):
    directory = save(tmp_path, byte_level(), tokenizer_class="PreTrainedTokenizerFast")
    tokens = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "bos_token": "<|im_start|>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    theirs = AutoTokenizer.from_pretrained(directory)
    assert read_tokenizer(directory).special_tokens == theirs.special_tokens_map
    assert read_tokenizer(directory).eos_token_id == theirs.eos_token_id


def added(tokenizer, **changes):
    return {
        str(number): {
            "content": token.content,
            **{
                flag: getattr(token, flag)
                for flag in ("lstrip", "rstrip", "single_word", "normalized", "special")
            },
            **(changes if token.content == "<|im_end|>" else {}),
        }
        for number, token in tokenizer.get_added_tokens_decoder().items()
    }


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "BloomTokenizerFast"},
        {"eos_token": "<end of text>"},
        {"eos_token": "h"},
        {"extra_special_tokens": ["<image>"]},
        {"extra_special_tokens": {"image_token": "<image>"}},
        {"auto_map": {"AutoTokenizer": ["a", "b"]}},
        {"add_prefix_space": True},
        {"split_special_tokens": True},
        {"added_tokens_decoder": added(byte_level(), lstrip=True)},
        {"added_tokens_decoder": added(byte_level()) | {"9999": {"content": "<new>"}}},
    ],
)
def test_what_transformers_would_add_or_convert_is_left_to_it(tmp_path, config):
    known = {"tokenizer_class": "TokenizersBackend", **NAMED}
    directory = save(tmp_path, byte_level(), **known, added_tokens_decoder=added(byte_level()))
    read_tokenizer(directory)
    save(tmp_path, byte_level(), **(known | config))
    with pytest.raises(UnknownTokenizerError):
        read_tokenizer(directory)


def test_a_tokenizer_left_to_transformers_is_loaded_by_it(tmp_path):
    tokenizer = byte_level()
    known = {"tokenizer_class": "TokenizersBackend", **NAMED}
    directory = save(tmp_path, tokenizer, **known | {"eos_token": "<end of text>"})
    codec = HuggingFaceCodec.load(directory)
    codec.prepare()
    assert codec.eos_token_id == tokenizer.get_vocab_size()


def test_a_tokenizer_without_tokenizer_json_is_left_to_transformers(tmp_path):
    with pytest.raises(UnknownTokenizerError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path)


def test_padding_names_the_token_it_pads_with(tmp_path):
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    tokenizer.enable_padding(pad_token="<pad>", pad_id=tokenizer.token_to_id("<pad>"))
    directory = save(tmp_path, tokenizer, tokenizer_class="TokenizersBackend", **NAMED)
    theirs = AutoTokenizer.from_pretrained(directory)
    assert read_tokenizer(directory).special_tokens == theirs.special_tokens_map
