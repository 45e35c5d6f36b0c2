import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from alignflow.errors import ConfigError, DataError
from alignflow.fingerprints import (
    Fingerprints,
    chat_template_fingerprint,
    check_same,
    folder_fingerprints,
    tokenizer_fingerprint,
)

FolderOf = Callable[[Mapping[str, bytes | str]], Path]

TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": 0, "content": "<s>", "special": True}],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]},
}
SETTINGS: dict[str, Any] = {"eos_token": "</s>", "pad_token": "</s>", "model_max_length": 2048}


@pytest.fixture
def model(folder_of: FolderOf) -> Callable[..., Path]:
    """Write a Hugging Face folder with changes to its tokenizer or its settings."""

    def write(
        *, tokenizer: dict[str, Any] | None = None, template: str | None = None, **settings: Any
    ) -> Path:
        files: dict[str, bytes | str] = {
            "tokenizer.json": json.dumps(TOKENIZER | (tokenizer or {})),
            "tokenizer_config.json": json.dumps(SETTINGS | settings),
        }
        if template is not None:
            files["chat_template.jinja"] = template
        return folder_of(files)

    return write


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": {"version": "1.1"}},
        {"tokenizer": {"truncation": {"max_length": 512}, "padding": {"pad_id": 2}}},
        {"tokenizer": {"model": {**TOKENIZER["model"], "merges": [["a", "b"]]}}},
        {"tokenizer": dict(reversed(TOKENIZER.items()))},
        {"model_max_length": 8192},
        {"pad_token": "<pad>"},
        {"eos_token": {"content": "</s>", "lstrip": False, "__type": "AddedToken"}},
        {"add_bos_token": False},
    ],
)
def test_what_changes_no_token_changes_no_fingerprint(
    model: Callable[..., Path], change: dict[str, Any]
) -> None:
    assert tokenizer_fingerprint(model(**change)) == tokenizer_fingerprint(model())


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": {"model": {**TOKENIZER["model"], "merges": []}}},
        {"tokenizer": {"model": {**TOKENIZER["model"], "vocab": {"a": 0}}}},
        {"tokenizer": {"added_tokens": []}},
        {"tokenizer": {"normalizer": {"type": "NFC"}}},
        {"tokenizer": {"pre_tokenizer": {"type": "Whitespace"}}},
        {"eos_token": "<|im_end|>"},
        {"bos_token": "<s>"},
        {"add_bos_token": True},
    ],
)
def test_what_changes_tokens_changes_the_fingerprint(
    model: Callable[..., Path], change: dict[str, Any]
) -> None:
    assert tokenizer_fingerprint(model(**change)) != tokenizer_fingerprint(model())


def test_special_tokens_may_stand_in_their_own_file(
    model: Callable[..., Path],
) -> None:
    apart = model(eos_token=None)
    settings = json.loads((apart / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (apart / "tokenizer_config.json").write_text(json.dumps(settings))
    (apart / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    assert tokenizer_fingerprint(apart) == tokenizer_fingerprint(model())


def test_the_template_is_the_same_in_either_place(model: Callable[..., Path]) -> None:
    folders = [
        model(template="{{ x }}\n"),
        model(template="{{ x }}\r\n"),
        model(chat_template="{{ x }}"),
        model(chat_template=[{"name": "default", "template": "{{ x }}"}]),
        model(template="{{ x }}", chat_template="an older one"),
    ]
    assert len({chat_template_fingerprint(folder) for folder in folders}) == 1
    assert chat_template_fingerprint(folders[0]) != chat_template_fingerprint(model(template="x"))
    assert chat_template_fingerprint(model()) is None


def test_a_folder_without_a_tokenizer_is_refused(folder_of: FolderOf, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no tokenizer\.json"):
        folder_fingerprints(folder_of({"config.json": "{}"}))
    with pytest.raises(DataError, match=r"there is no tokenizer\.json"):
        folder_fingerprints(tmp_path / "none")


@pytest.mark.parametrize("content", ["{", "[]", "\udcff".encode("utf-8", "surrogatepass")])
def test_a_tokenizer_that_is_no_json_is_refused(folder_of: FolderOf, content: bytes | str) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json: "):
        folder_fingerprints(folder_of({"tokenizer.json": content}))


@pytest.mark.parametrize("template", [3, {"a": 1}, [{"name": "default", "template": 1}], ["x"]])
def test_a_template_that_is_no_text_is_refused(
    model: Callable[..., Path], template: object
) -> None:
    with pytest.raises(DataError, match="chat_template is not text"):
        chat_template_fingerprint(model(chat_template=template))


def test_stages_that_differ_are_stopped_with_both_names() -> None:
    ours = Fingerprints(tokenizer="a" * 64, chat_template="c" * 64)
    check_same("dpo", ours, "sft", ours)
    with pytest.raises(ConfigError, match="dpo and sft differ in their tokenizer"):
        check_same("dpo", ours, "sft", ours.replaced(tokenizer="b" * 64))
    with pytest.raises(ConfigError, match=r"their chat template \(cccccccccccc and none\)"):
        check_same("dpo", ours, "sft", ours.replaced(chat_template=None))


def test_an_artifact_without_a_tokenizer_fits_everything() -> None:
    ours = Fingerprints(tokenizer="a" * 64, chat_template="c" * 64)
    check_same("sft", ours, "dataset", Fingerprints())
    check_same("dataset", Fingerprints(), "sft", ours)
