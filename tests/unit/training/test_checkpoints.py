from pathlib import Path

import pytest

from alignflow.errors import ConfigError, DataError
from alignflow.training.checkpoints import Checkpoints, model_digest, recorded_digests


def checkpoints(
    folder: Path,
    *,
    model: str = "123",
    data: str = "abc",
    learning_rate: float = 1e-5,
    keep: int = 2,
) -> Checkpoints:
    config = {"learning_rate": learning_rate, "parallel": {"data_parallel_size": 2}}
    return Checkpoints(folder, model_digest=model, data_digest=data, config=config, keep=keep)


def save(subject: Checkpoints, step: int) -> None:
    path = subject.path(step)
    subject.begin(path)
    (path / "weights").write_text(str(step))
    subject.finish(path, {"weights": "0"})


def test_the_newest_complete_one_counts(tmp_path: Path) -> None:
    subject = checkpoints(tmp_path)
    assert subject.newest() is None
    for step in (9, 10):
        save(subject, step)
    subject.begin(subject.path(11))  # killed before it was finished
    assert subject.newest() == tmp_path / "step-00000010"


def test_a_damaged_one_counts_no_more(tmp_path: Path) -> None:
    subject = checkpoints(tmp_path)
    for step in (10, 20):
        save(subject, step)
    subject.discard(subject.path(20))
    assert subject.newest() == tmp_path / "step-00000010"
    assert recorded_digests(tmp_path / "step-00000010") == {"weights": "0"}
    with pytest.raises(DataError, match="not a whole checkpoint"):
        recorded_digests(subject.path(20))


def test_only_the_latest_are_kept(tmp_path: Path) -> None:
    subject = checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30):
        save(subject, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]


def test_the_best_is_kept_besides_the_latest(tmp_path: Path) -> None:
    subject = checkpoints(tmp_path, keep=1)
    for step, best in ((10, 10), (20, 10), (30, 10), (40, 40)):
        path = subject.path(step)
        subject.begin(path)
        subject.finish(path, {}, best_step=best)
        kept = sorted(path.name for path in tmp_path.iterdir())
        assert kept == sorted({f"step-{best:08d}", f"step-{step:08d}"})


def test_an_older_one_is_found_by_its_step(tmp_path: Path) -> None:
    subject = checkpoints(tmp_path, keep=3)
    for step in (10, 20, 30):
        save(subject, step)
    assert subject.newest(until_step=29) == tmp_path / "step-00000020"
    assert subject.newest(until_step=9) is None


def test_a_checkpoint_that_is_written_anew_does_not_count_meanwhile(tmp_path: Path) -> None:
    subject = checkpoints(tmp_path)
    for step in (10, 20):
        save(subject, step)
    subject.begin(subject.path(20))
    assert subject.newest() == tmp_path / "step-00000010"


def test_what_a_killed_attempt_left_is_emptied(tmp_path: Path) -> None:
    subject = checkpoints(tmp_path)
    subject.begin(subject.path(10))
    (tmp_path / "step-00000010/half").write_text("")
    save(subject, 10)
    assert not (tmp_path / "step-00000010/half").exists()


def test_a_checkpoint_of_another_config_is_refused_by_name(tmp_path: Path) -> None:
    save(checkpoints(tmp_path), 10)
    with pytest.raises(ConfigError, match=r"step-00000010: .* learning_rate 1e-05, .* has 2e-05"):
        checkpoints(tmp_path, learning_rate=2e-5).newest()


def test_a_checkpoint_of_other_data_is_refused_by_name(tmp_path: Path) -> None:
    save(checkpoints(tmp_path), 10)
    with pytest.raises(DataError, match=r"step-00000010: .* other data"):
        checkpoints(tmp_path, data="def").newest()


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    save(checkpoints(tmp_path), 10)
    with pytest.raises(DataError, match=r"step-00000010: .* another model"):
        checkpoints(tmp_path, model="456").newest()


def test_models_that_differ_in_their_weights_alone_have_other_digests(tmp_path: Path) -> None:
    digests = []
    for name, weights in (("a", bytes(10**6)), ("b", b"\1" * 10**6), ("c", bytes(10**6))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        digests.append(model_digest(tmp_path / name))
    assert digests[0] == digests[2] != digests[1]
