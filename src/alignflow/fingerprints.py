"""Fingerprints of tokenizers and chat templates, and the check that two stages share them.

A model trained on one tokenizer and judged with another gives numbers that mean nothing and no
error at all. The fingerprints are read from the JSON files of a Hugging Face folder, without
loading the tokenizer.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from alignflow.artifacts.manifest import canonical_json
from alignflow.config import Config
from alignflow.errors import ConfigError, DataError

# Settings of a call that fast tokenizers save with themselves; they change no token of a text.
_NOT_OF_THE_TOKENIZER = ("version", "truncation", "padding")
# The padding token is left out: padded positions are masked, and which token fills them is moot.
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token")
_FLAGS = ("add_bos_token", "add_eos_token")


class Fingerprints(Config):
    """What two stages must share for the tokens of one to mean the same to the other."""

    tokenizer: str | None = None
    """SHA-256 of the tokenizer; None where there is none."""
    chat_template: str | None = None
    """SHA-256 of the chat template; None where there is none."""


def folder_fingerprints(folder: Path) -> Fingerprints:
    """Return the fingerprints of a Hugging Face folder.

    Raises:
        DataError: The folder has no tokenizer, or one of its files is not valid JSON.
    """
    return Fingerprints(
        tokenizer=tokenizer_fingerprint(folder), chat_template=chat_template_fingerprint(folder)
    )


def tokenizer_fingerprint(folder: Path) -> str:
    """SHA-256 over tokenizer.json, in a canonical form, and the special tokens that matter.

    Raises:
        DataError: There is no tokenizer.json, or it is not valid JSON.
    """
    tokenizer = _read_json(folder / "tokenizer.json")
    if tokenizer is None:
        raise DataError(
            f"{folder.absolute()}: there is no tokenizer.json; give a Hugging Face folder with a "
            "fast tokenizer."
        )
    settings = _read_json(folder / "tokenizer_config.json") or {}
    special = {**(_read_json(folder / "special_tokens_map.json") or {}), **settings}
    content = {
        "tokenizer": {
            name: _canonical_merges(part) if name == "model" else part
            for name, part in tokenizer.items()
            if name not in _NOT_OF_THE_TOKENIZER
        },
        "special_tokens": {name: _token_text(special.get(name)) for name in _SPECIAL_TOKENS},
        "flags": [name for name in _FLAGS if settings.get(name)],
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()


def chat_template_fingerprint(folder: Path) -> str | None:
    """SHA-256 of the chat template, or None where the folder has none.

    It stands in chat_template.jinja or, in older folders, in tokenizer_config.json. A newline at
    its end does not count, since Jinja drops it.

    Raises:
        DataError: tokenizer_config.json is not valid JSON or holds no default template.
    """
    template = _read_chat_template(folder)
    if template is None:
        return None
    return hashlib.sha256(template.removesuffix("\n").encode()).hexdigest()


def check_same(
    name: str, prints: Fingerprints, other_name: str, other_prints: Fingerprints
) -> None:
    """Stop the run where two models that work together differ in tokenizer or chat template.

    An artifact without a tokenizer, such as a dataset, fits everything.

    Args:
        name: Stage that made the one, or what else it is in a few words.
        prints: Its fingerprints.
        other_name: The same of the other.
        other_prints: Its fingerprints.

    Raises:
        ConfigError: They differ; the message names both and what differs.
    """
    if prints.tokenizer is None or other_prints.tokenizer is None:
        return
    if prints.tokenizer != other_prints.tokenizer:
        what = "tokenizer", prints.tokenizer[:12], other_prints.tokenizer[:12]
    elif prints.chat_template != other_prints.chat_template:
        what = "chat template", _short(prints.chat_template), _short(other_prints.chat_template)
    else:
        return
    raise ConfigError(
        f"{name} and {other_name} differ in their {what[0]} ({what[1]} and {what[2]}); "
        f"give both the same model or the same {what[0]}."
    )


def _short(fingerprint: str | None) -> str:
    return fingerprint[:12] if fingerprint else "none"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read as JSON ({error}).") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: this is not a JSON object; give a Hugging Face folder.")
    return content


def _canonical_merges(model: Any) -> Any:
    """Write each merge as a pair: older files have it as text with a space between."""
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        return model
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    return {**model, "merges": merges}


def _token_text(token: Any) -> Any:
    """Return the text of a special token, which stands alone or in an object with its flags."""
    return token.get("content") if isinstance(token, dict) else token


def _read_chat_template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as UTF-8 text ({error}).") from None
    template = (_read_json(folder / "tokenizer_config.json") or {}).get("chat_template")
    if isinstance(template, list):
        named = [item for item in template if isinstance(item, dict)]
        # Text of several templates, of which none is the default one, is no template either.
        template = next((i.get("template") for i in named if i.get("name") == "default"), template)
    if template is not None and not isinstance(template, str):
        raise DataError(
            f"{folder / 'tokenizer_config.json'}: chat_template is not text; "
            "give a template, or several of which one is named default."
        )
    return template
