from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

CORPUS = [
    "a first question and its answer, then a second question with a second answer",
    "name three primary colours; red, yellow and blue are the primary colours",
    "you are a helpful assistant called by the user to think",
]


def byte_level_tokenizer(special_tokens: Sequence[str]) -> Tokenizer:
    """A byte-level BPE in which line ends merge with one another, as in Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\s*[\r\n]+|[^\s\p{L}\p{N}]+[\r\n]*| ?\p{L}+|\p{N}|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS, *["line\n\nline.\n\nline"] * 9], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Builds a tokenizer: `make_tokenizer(template, special_tokens, bos=None, eos=None)`."""

    def make(template: str, special_tokens: Sequence[str], **names: str) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(
            tokenizer_object=byte_level_tokenizer(special_tokens),
            chat_template=template,
            **{f"{name}_token": token for name, token in names.items()},
        )

    return make


@pytest.fixture(scope="session")
def chatml_model(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model folder with a config, a tokenizer and a ChatML template, and no weights."""
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer(template, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
    return folder
