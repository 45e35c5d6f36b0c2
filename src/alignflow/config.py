"""The base class of every config, and the one way configs are read from YAML.

A config file is data: includes, tags and code are refused. Values may name environment variables
as `${NAME}` or `${NAME:-default}`; an override is `key.path=value`, its value read as YAML.
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from alignflow.errors import ConfigError

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


class Config(BaseModel):
    """Frozen; unknown keys are refused; the string under a field documents it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def replaced(self, **changes: Any) -> Self:
        """Return a validated copy with some fields changed."""
        return type(self).model_validate({**self.model_dump(), **changes})


def as_yaml(config: Config) -> str:
    """Return the config as YAML text, every field written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


ConfigT = TypeVar("ConfigT", bound=Config)

KeyPath = tuple[str, ...]
Places = dict[KeyPath, str]
"""Where each key path was set: `file:line`, or the override that set it."""


def load_config(
    model: type[ConfigT],
    path: Path,
    *,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> ConfigT:
    """Read a YAML file into a config, with overrides applied and variables filled in.

    Raises:
        ConfigError: The file can't be read, isn't YAML, or doesn't fit the model. The message names
            file, line and field, and the nearest known name of an unknown key.
    """
    data, places = _parse_yaml(_read_text(path), path)
    for override in overrides:
        _apply_override(data, override, places)
    data = _expand(data, environ, (), path, places)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, model, data, path, places)) from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a recipe.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as a UTF-8 text file ({error}).") from None


def _parse_yaml(text: str, path: Path) -> tuple[dict[str, Any], Places]:
    """Return the mapping, and the file and line on which each key path stands."""
    lines: dict[KeyPath, int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
        _collect_lines(node, (), lines, path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "it can't be parsed"
        raise ConfigError(f"{where}: not valid YAML: {problem}.") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply, or an alias stands in itself.") from None
    except ConfigError:
        raise
    except ValueError as error:
        # A date like 2026-13-01, or an integer of thousands of digits.
        raise ConfigError(f"{path}: a value can't be read ({error}); quote it.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a recipe is a YAML mapping, but this is {_kind(data)}.")
    return data, {at: f"{path}:{line}" for at, line in lines.items()}


def _collect_lines(
    node: yaml.Node | None, at: KeyPath, lines: dict[KeyPath, int], path: Path
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*at, str(key.value))
            if inner in lines:
                line = key.start_mark.line + 1
                raise ConfigError(
                    f"{path}:{line}: {'.'.join(inner)} stands here a second time "
                    f"(first on line {lines[inner]}); keep one."
                )
            lines[inner] = key.start_mark.line + 1
            _collect_lines(value, inner, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = (*at, str(index))
            lines[inner] = value.start_mark.line + 1
            _collect_lines(value, inner, lines, path)


def _apply_override(data: dict[str, Any], override: str, places: Places) -> None:
    """Set one `a.b.c=value` in place; list items are named by index."""
    keys, value = _parse_override(override)
    _set(data, keys, value, override)
    for at in [at for at in places if at[: len(keys)] == keys]:
        del places[at]
    places[keys] = f"--set {override}"


def _parse_override(override: str) -> tuple[KeyPath, Any]:
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: an override looks like sft.learning_rate=1e-5.")
    try:
        return keys, yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"--set {override}: the value is not valid YAML; quote it.") from None


def _set(data: dict[str, Any], keys: KeyPath, value: Any, override: str) -> None:
    at: Any = data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(at, list):
            if not key.isdecimal() or int(key) >= len(at):
                where = ".".join(keys[:depth])
                raise ConfigError(
                    f"--set {override}: {where} is a list of {len(at)}; use an index below that."
                )
            if last:
                at[int(key)] = value
            else:
                at = at[int(key)]
        elif isinstance(at, dict):
            if last:
                at[key] = value
            else:
                if at.get(key) is None:
                    at[key] = {}
                at = at[key]
        else:
            where = ".".join(keys[:depth])
            raise ConfigError(f"--set {override}: {where} is {_kind(at)}, it has no keys.")


def _expand(
    value: Any,
    environ: Mapping[str, str],
    at: KeyPath,
    path: Path,
    places: Places,
) -> Any:
    """Return the value with every `${NAME}` in its strings filled in."""
    if isinstance(value, dict):
        return {k: _expand(v, environ, (*at, str(k)), path, places) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, environ, (*at, str(i)), path, places) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        found = environ.get(match["name"], match["default"])
        if found is None:
            raise ConfigError(
                f"{_place(path, at, places)}: the environment variable {match['name']} is not set; "
                f"set it, or write ${{{match['name']}:-default}}."
            )
        return found

    return _VARIABLE.sub(fill, value)


def _explain(
    error: ValidationError, model: type[Config], data: Any, path: Path, places: Places
) -> str:
    """Return one sentence for each thing that is wrong, one a line."""
    sentences = []
    for item in error.errors(include_url=False):
        at = _key_path(item["loc"], data)
        if item["type"] == "extra_forbidden":
            known = _known_keys(model, item["loc"][:-1])
            near = difflib.get_close_matches(at[-1], known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}."
            sentences.append(f"{_place(path, at, places)}: unknown key; {hint}")
        elif item["type"] == "missing":
            sentences.append(f"{_place(path, at, places)}: this key is required.")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = item.get("input")
            shown = f", not {given!r}" if isinstance(given, str | int | float | bool) else ""
            sentences.append(f"{_place(path, at, places)}: {message}{shown}.")
    return "\n".join(sentences)


def _key_path(location: tuple[int | str, ...], data: Any) -> KeyPath:
    """Return pydantic's location without the names of union members, which no file holds."""
    keys = []
    for depth, part in enumerate(location):
        is_key = isinstance(data, dict) and part in data
        if is_key or (isinstance(data, list) and isinstance(part, int)):
            data = data[part]
        elif depth < len(location) - 1:
            continue
        keys.append(str(part))
    return tuple(keys)


def _place(path: Path, at: KeyPath, places: Places) -> str:
    """Return `file:line: key.path`, with the place of the nearest key that was set anywhere."""
    for length in range(len(at), 0, -1):
        if at[:length] in places:
            return f"{places[at[:length]]}: {'.'.join(at)}"
    return f"{path}: {'.'.join(at)}" if at else str(path)


def _known_keys(model: type[Config], location: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the model that pydantic's location leads to."""
    models = [model]
    for part in map(str, location):
        inner = [field.annotation for m in models if (field := m.model_fields.get(part))]
        nested = [m for annotation in inner for m in _models_in(annotation)]
        # In a union the part is a member's tag; below a dict it is a key and no field: stay.
        models = nested or [m for m in models if _has_tag(m, part)] or models
    return sorted({name for m in models for name in m.model_fields})


def _has_tag(model: type[Config], tag: str) -> bool:
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())


def _models_in(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "empty"}
    return names.get(type(value), f"the value {value!r}")
