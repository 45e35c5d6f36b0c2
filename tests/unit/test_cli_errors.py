"""Errors that no command expects, as a person at the terminal sees them."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from alignflow.cli.app import _ExitCodes, app


def test_a_full_disk_is_one_sentence() -> None:
    writing = typer.Typer(cls=_ExitCodes, pretty_exceptions_enable=False)

    @writing.command()
    def write() -> None:
        Path("/dev/full").write_bytes(b"x" * 2**20)

    @writing.command()
    def read() -> None:
        Path("/nowhere").read_bytes()

    full = CliRunner().invoke(writing, ["write"])
    assert full.exit_code == 1
    assert full.stderr.startswith("alignflow: the disk is full")
    assert len(full.stderr.splitlines()) == 1
    with pytest.raises(FileNotFoundError):
        CliRunner().invoke(writing, ["read"], catch_exceptions=False)


@pytest.mark.parametrize("command", ["down", "status", "gc", "doctor"])
def test_a_folder_that_was_deleted_is_one_sentence(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    done = CliRunner().invoke(app, [command])
    assert done.exit_code == 2
    assert done.stderr.startswith("alignflow: this folder has been deleted")
    assert len(done.stderr.splitlines()) == 1
