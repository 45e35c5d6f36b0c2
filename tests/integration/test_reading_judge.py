"""A judge that reads a language model: its states, its card, and the command that makes it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from alignflow.cli.app import app
from alignflow.errors import DataError
from alignflow.evaluation.judges.card import JudgeCard
from alignflow.evaluation.judges.judge import Judge
from alignflow.evaluation.judges.probe import Probe, ProbeJudge, features
from alignflow.evaluation.judges.statement import Statement
from alignflow.evaluation.judges.states import States, keep_layers

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

TOXICITY = Path(__file__).parents[2] / "examples/toxicity.json"


@pytest.fixture(scope="module")
def states(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> States:
    folder = tmp_path_factory.mktemp("states")
    assert keep_layers(tiny_model, folder, share=0.5) == 1
    return States.load(folder)


@torch.no_grad()
def plain(model: Path, before: str, text: str) -> np.ndarray:
    """The mean and the last state of the text after the first of two layers, a text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    whole = AutoModel.from_pretrained(model, dtype=torch.bfloat16).float().eval()
    begin = [tokenizer.eos_token_id, *tokenizer(before)["input_ids"]]
    tokens = [*begin, *tokenizer(text)["input_ids"]]
    found = whole(torch.tensor([tokens]), output_hidden_states=True)
    states_TH = whole.norm(found.hidden_states[1][0])
    both: np.ndarray = torch.cat([states_TH[len(begin) :].mean(0), states_TH[-1]]).double().numpy()
    return both


def test_a_vector_is_the_mean_and_the_last_state_of_the_answer_alone(
    states: States, tiny_model: Path
) -> None:
    statements = [
        Statement("a cold river that is long"),
        Statement("red"),
        Statement("warm", question="which colour is red?"),
        Statement("", question="which colour is red?"),
    ]
    vectors = states.vectors(statements)
    expected = [
        plain(tiny_model, "", "a cold river that is long"),
        plain(tiny_model, "", "red"),
        plain(tiny_model, "Q: which colour is red?\nA:", " warm"),
    ]
    np.testing.assert_allclose(vectors[:3], expected, atol=1e-5)
    assert np.isfinite(vectors[3]).all()
    np.testing.assert_allclose(states.vectors(statements[2:3])[0], vectors[2], atol=1e-5)


def test_how_near_the_references_are_counts_where_there_are_some(states: States) -> None:
    true, false = ("the river is cold",), ("the river is warm",)
    both = features(
        states, [Statement("the river is cold", true, false), Statement("the river is cold")]
    )
    # An answer equal to the true one has BLEU and ROUGE of 100 with it, and less with the other.
    overlaps = both[:, states.size :]
    assert overlaps[0, ::2] == pytest.approx([100] * 4)
    assert (overlaps[0, 1::2] > 0).all()
    assert (overlaps[1] == 0).all()


def test_a_probe_finds_the_direction_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    features_NF = rng.normal(size=(400, 6)) * [1, 10, 0.1, 1, 1, 0] + 3
    labels_N = features_NF[:, 1] > 3
    probe = Probe.fit(features_NF, labels_N, [str(n) for n in range(400)], seed=0)
    assert roc_auc_score(labels_N, probe.log_odds(features_NF)) > 0.99
    # Scaled back, the column of ten times the spread outweighs all others; a constant one is none.
    assert np.argmax(np.abs(probe.weights_F * features_NF.std(0))) == 1
    assert probe.weights_F[5] == 0


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(DataError, match="no language model whose layers a judge can read"):
        keep_layers(tmp_path, tmp_path / "made", share=0.5)


def judge(workspace: Path, *arguments: str) -> str:
    done = CliRunner().invoke(
        app, ["judge", *arguments, "--workspace", str(workspace)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_a_command_trains_it_once_in_a_job(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNFLOW_SLOTS_DIR", str(tmp_path / "slots"))
    train = ("train", "toxicity", "--data", str(TOXICITY), "--model", str(tiny_model))
    shown = json.loads(judge(tmp_path, *train, "--format", "json"))
    assert shown["language_model"]["name"] == str(tiny_model)
    assert {"config.json", "model.safetensors"} <= shown["language_model"]["files"].keys()
    assert shown["num_layers"] == 1
    assert shown["num_features"] == 2 * 64 + 8
    assert judge(tmp_path, *train, "--format", "json") == json.dumps(shown, indent=2) + "\n"
    (folder,) = (tmp_path / "artifacts" / "artifacts").iterdir()
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {
        *(".safetensors", ".json", ".jinja")
    }
    made = Judge.load(folder)
    assert isinstance(made.model, ProbeJudge)
    assert made.card == JudgeCard.model_validate(shown)
    statements = [Statement(item["text"]) for item in json.loads(TOXICITY.read_text())]
    labels = [item["label"] == "hate" for item in json.loads(TOXICITY.read_text())]
    # On what it was fitted on; what the card tells is of the held-out folds.
    assert roc_auc_score(labels, made.judge(statements).probabilities_N) > made.card.measured.auc
    (folder / "probe.safetensors").chmod(0o644)
    (folder / "probe.safetensors").unlink()
    with pytest.raises(DataError, match="holds no judge that can be loaded"):
        Judge.load(folder)
