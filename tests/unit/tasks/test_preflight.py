"""What is refused before anything starts."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from alignflow.errors import ConfigError, DataError
from alignflow.flows.config import Recipe
from alignflow.tasks.preflight import check_inputs, open_store

CLOSED = "http://somebody:secret@127.0.0.1:9"


@pytest.fixture
def sound(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe that passes, in an environment that names no server."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model" / "model.safetensors").touch()
    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return recipe


@pytest.fixture
def asks_for_password() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def changed(recipe: Recipe, **model: str) -> Recipe:
    return recipe.replaced(model={**recipe.model.model_dump(), **model})


def test_sound_recipe_passes(sound: Recipe) -> None:
    check_inputs(sound)


def test_workspace_that_pods_do_not_see_is_refused(sound: Recipe, tmp_path: Path) -> None:
    def mounted(path: Path) -> Recipe:
        volumes = [{"claim": "alignflow", "mount_path": str(path)}]
        kubernetes = {"image": "alignflow:1", "volumes": volumes}
        cluster = {"launcher": "kubernetes", "device": "cpu", "kubernetes": kubernetes}
        return sound.replaced(cluster=cluster)

    check_inputs(mounted(tmp_path))
    with pytest.raises(ConfigError, match="lies in no volume that pods can write"):
        check_inputs(mounted(Path("/mnt/elsewhere")))


def test_a_judge_without_its_labelled_texts_is_refused(sound: Recipe, tmp_path: Path) -> None:
    prompts, gone = tmp_path / "prompts.jsonl", tmp_path / "gone.json"
    prompts.touch()
    training = {"task": "toxicity", "data": str(gone)}
    suite = {
        "suite": "toxigen_prompts",
        "data": str(prompts),
        "judges": {"toxicity": {"kind": "trained", "training": training}},
    }
    with pytest.raises(DataError, match=r"gone\.json"):
        check_inputs(sound.replaced(evaluation={"suites": {"continued": suite}}))


def test_a_judge_of_answers_that_is_no_model_is_refused(sound: Recipe, tmp_path: Path) -> None:
    judge = {"model": {"source": str(tmp_path / "nowhere")}}
    with pytest.raises(DataError, match=r"there is no model .*nowhere"):
        check_inputs(sound.replaced(evaluation={"answer_judge": judge}))


@pytest.mark.parametrize("source", ["OWNER/NAME", "hf://datasets/OWNER/NAME@main"])
def test_set_of_the_hub_is_left_to_the_run(sound: Recipe, source: str) -> None:
    data = sound.data.model_dump()
    data["preferences"]["sources"] = [source]
    check_inputs(sound.replaced(data=data))


def test_missing_file_is_no_set_of_the_hub(sound: Recipe) -> None:
    data = sound.data.model_dump()
    data["preferences"]["sources"] = ["examples/nowhere.jsonl"]
    with pytest.raises(DataError, match=r"nowhere\.jsonl: there is no such file"):
        check_inputs(sound.replaced(data=data))


def test_missing_template_is_told(sound: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.chat_template: .*none\.jinja can't be read"):
        check_inputs(changed(sound, chat_template=str(tmp_path / "none.jinja")))


def test_workspace_that_cannot_be_made_is_told(sound: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"can't write to the workspace .*a file stands where"):
        check_inputs(sound.replaced(workspace=str(tmp_path / "file" / "workspace")))


@pytest.mark.parametrize("variable", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI"])
def test_silent_server_is_told_without_its_password(
    sound: Recipe, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, CLOSED)
    with pytest.raises(ConfigError, match=f"{variable}: .* doesn't answer") as caught:
        check_inputs(sound)
    assert "secret" not in str(caught.value)


def test_server_that_asks_for_a_password_is_there(
    sound: Recipe, asks_for_password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", asks_for_password)
    check_inputs(sound)


def test_store_is_named_for_any_working_directory(recipe: Recipe) -> None:
    assert open_store(recipe.replaced(store="here")).url == os.path.abspath("here")
    assert open_store(recipe.replaced(store="s3://bucket/a")).url == "s3://bucket/a"


def test_checks_load_no_heavy_library() -> None:
    code = (
        "import sys, alignflow.tasks.preflight\n"
        "heavy = {'prefect', 'mlflow', 'polars', 'pandera', 'torch', 'datasets'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("config", ["{not json", "{}", '{"architectures": null}', "[]"])
def test_folder_with_a_broken_config_is_no_model(
    sound: Recipe, tmp_path: Path, config: str
) -> None:
    (tmp_path / "model" / "config.json").write_text(config)
    with pytest.raises(DataError, match=r"config\.json: not the config of a model"):
        check_inputs(sound)
