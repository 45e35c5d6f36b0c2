from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt

from alignflow.config import Config, load_config
from alignflow.errors import ConfigError


class Fixed(Config):
    schedule: Literal["fixed"] = "fixed"
    rate: float = 1e-5


class Decay(Config):
    schedule: Literal["decay"] = "decay"
    steps: PositiveInt = 10


class Stage(Config):
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    num_steps: PositiveInt = 10
    warmup: Annotated[Fixed | Decay, Field(discriminator="schedule")] = Fixed()


class Example(Config):
    name: str
    stages: dict[str, Stage] = {}
    files: list[str] = []
    sft: Stage | None = None


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, *overrides: str) -> str:
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_config(Example, path, overrides=overrides, environ={"EMPTY": ""})
    assert caught.value.exit_code == 2
    return str(caught.value).replace(str(path), "R")


def test_a_file_becomes_a_frozen_config(tmp_path: Path) -> None:
    path = write(tmp_path, "name: demo\nsft: {learning_rate: 2e-6}\nfiles: [a, b]\n")
    config = load_config(Example, path)
    assert config == Example(name="demo", sft=Stage(learning_rate=2e-6), files=["a", "b"])
    assert config.replaced(name="other").name == "other"


def test_an_unknown_key_is_refused_with_the_nearest_name_and_its_line(tmp_path: Path) -> None:
    text = "name: demo\nsft:\n  num_steps: 3\n  lerning_rate: 1e-5\n"
    assert refusal(tmp_path, text) == (
        "R:4: sft.lerning_rate: unknown key; did you mean learning_rate?"
    )


def test_an_unknown_key_near_to_nothing_lists_what_is_known(tmp_path: Path) -> None:
    assert refusal(tmp_path, "name: demo\nzzz: 1\n") == (
        "R:2: zzz: unknown key; known here: files, name, sft, stages."
    )


def test_an_unknown_key_inside_a_mapping_of_configs_is_found(tmp_path: Path) -> None:
    text = "name: demo\nstages:\n  first:\n    num_step: 3\n"
    assert refusal(tmp_path, text) == (
        "R:4: stages.first.num_step: unknown key; did you mean num_steps?"
    )


def test_every_mistake_has_its_own_line(tmp_path: Path) -> None:
    text = "sft:\n  num_steps: 0\n  learning_rate: fast\n"
    lines = refusal(tmp_path, text).splitlines()
    assert lines[0] == "R: name: this key is required."
    assert "R:3: sft.learning_rate: " in lines[1]
    assert "not 'fast'" in lines[1]
    assert lines[2] == "R:2: sft.num_steps: Input should be greater than 0, not 0."


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    text = "name: demo\nsft:\n  num_steps: 3\n  num_steps: 4\n"
    assert refusal(tmp_path, text) == (
        "R:4: sft.num_steps stands here a second time (first on line 3); keep one."
    )


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("name: [1, 2\n", "R:2: not valid YAML: "),
        ("a: b: c\n", "R:1: not valid YAML: "),
        ("name: !!python/object/apply:os.system [ls]\n", "R:1: not valid YAML: "),
        ("name: \x00\n", "R: not valid YAML: "),
        ("", "R: a recipe is a YAML mapping, but this is empty."),
        ("- a\n- b\n", "R: a recipe is a YAML mapping, but this is a list."),
        ("just text\n", "R: a recipe is a YAML mapping, but this is text."),
        ("name: 2026-13-41\n", "R: a value can't be read ("),
        ("name: &a [*a]\n", "R: nested too deeply, or an alias stands in itself."),
        ("name: " + "[" * 600, "R: nested too deeply, or an alias stands in itself."),
        ("1: x\nname: demo\n", "R:1: 1: Keys should be strings"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(tmp_path: Path, text: str, start: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(start)
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_config(Example, tmp_path / "none.yaml")


def test_a_folder_and_a_binary_file_are_no_recipes(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "binary"):
        with pytest.raises(ConfigError, match="can't be read as a UTF-8 text file"):
            load_config(Example, path)


def test_variables_are_filled_in(tmp_path: Path) -> None:
    text = 'name: "${WHO}-x"\nfiles: ["${DATA:-/data}/a", "${EMPTY:-b}", "${NONE:-}c", $plain]\n'
    config = load_config(Example, write(tmp_path, text), environ={"WHO": "me", "EMPTY": ""})
    assert config.name == "me-x"
    assert config.files == ["/data/a", "", "c", "$plain"]


def test_a_variable_may_hold_a_number(tmp_path: Path) -> None:
    text = "name: demo\nsft: {num_steps: '${STEPS}'}\n"
    config = load_config(Example, write(tmp_path, text), environ={"STEPS": "7"})
    assert config.sft is not None
    assert config.sft.num_steps == 7


def test_a_variable_that_is_not_set_is_named_with_its_place(tmp_path: Path) -> None:
    assert refusal(tmp_path, "name: demo\nfiles:\n  - ok\n  - ${WHERE}/x\n") == (
        "R:4: files.1: the environment variable WHERE is not set; "
        "set it, or write ${WHERE:-default}."
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sft.num_steps=5", Stage(num_steps=5, learning_rate=1.0)),
        ("sft.learning_rate=2e-6", Stage(num_steps=3, learning_rate=2e-6)),
        ("sft={num_steps: 9}", Stage(num_steps=9)),
        ("sft.warmup.schedule=decay", Stage(num_steps=3, learning_rate=1.0, warmup=Decay())),
        ("sft=null", None),
        ("sft=", None),
    ],
)
def test_an_override_sets_a_value_at_a_path(
    tmp_path: Path, override: str, expected: Stage | None
) -> None:
    path = write(tmp_path, "name: demo\nsft: {num_steps: 3, learning_rate: 1.0}\n")
    assert load_config(Example, path, overrides=[override]).sft == expected


def test_an_override_makes_what_the_file_leaves_out(tmp_path: Path) -> None:
    path = write(tmp_path, "name: demo\nsft:\n")
    overrides = ["stages.new.num_steps=2", "sft.num_steps=4", "name=a=b"]
    config = load_config(Example, path, overrides=overrides)
    assert config.stages == {"new": Stage(num_steps=2)}
    assert config.sft == Stage(num_steps=4)
    assert config.name == "a=b"


def test_an_override_reaches_into_a_list(tmp_path: Path) -> None:
    path = write(tmp_path, "name: demo\nfiles: [a, b]\n")
    assert load_config(Example, path, overrides=["files.1=c"]).files == ["a", "c"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("files.2=c", "--set files.2=c: files is a list of 2; use an index below that."),
        ("files.²=c", "--set files.²=c: files is a list of 2; use an index below that."),
        ("files.x=c", "--set files.x=c: files is a list of 2; use an index below that."),
        ("name.x=c", "--set name.x=c: name is text, it has no keys."),
        ("files.0.x=c", "--set files.0.x=c: files.0 is text, it has no keys."),
        ("name", "--set name: an override looks like sft.learning_rate=1e-5."),
        ("=x", "--set =x: an override looks like sft.learning_rate=1e-5."),
        ("a..b=x", "--set a..b=x: an override looks like sft.learning_rate=1e-5."),
        ("name=[", "--set name=[: the value is not valid YAML; quote it."),
        ("name=2026-13-41", "--set name=2026-13-41: the value is not valid YAML; quote it."),
    ],
)
def test_a_bad_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert refusal(tmp_path, "name: demo\nfiles: [a, b]\n", override) == message


def test_a_mistake_in_an_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    text = "name: demo\nsft:\n  num_steps: 3\n"
    assert refusal(tmp_path, text, "sft.num_step=4") == (
        "--set sft.num_step=4: sft.num_step: unknown key; did you mean num_steps?"
    )
    assert refusal(tmp_path, text, "sft={num_steps: 0}") == (
        "--set sft={num_steps: 0}: sft.num_steps: Input should be greater than 0, not 0."
    )


def test_a_mistake_in_a_variant_names_the_key_and_not_the_variant(tmp_path: Path) -> None:
    text = "name: demo\nsft:\n  warmup:\n    schedule: decay\n    steps: 0\n"
    assert refusal(tmp_path, text) == (
        "R:5: sft.warmup.steps: Input should be greater than 0, not 0."
    )


def test_an_unknown_key_in_a_variant_is_refused_with_its_names_alone(tmp_path: Path) -> None:
    text = "name: demo\nsft:\n  warmup:\n    schedule: decay\n    rat: 0\n"
    assert refusal(tmp_path, text) == (
        "R:5: sft.warmup.rat: unknown key; known here: schedule, steps."
    )
