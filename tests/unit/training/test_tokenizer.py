from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaConfig

from alignflow.errors import DataError
from alignflow.training.tokenizer import load_tokenizer


def test_a_token_that_was_added_without_an_embedding_is_refused_by_name(
    tmp_path: Path, chatml_model: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chatml_model)
    size = len(tokenizer)
    LlamaConfig(vocab_size=size).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert len(load_tokenizer(tmp_path)) == size
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=rf"'<\|pad\|>' has the id {size}, .* model {size} tokens"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the tokenizer can't be read"):
        load_tokenizer(tmp_path)
