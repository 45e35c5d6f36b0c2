"""Errors that no command expects, as a person at the terminal sees them."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from alignflow.cli.app import _ExitCodes


def test_a_full_disk_is_one_sentence() -> None:
    app = typer.Typer(cls=_ExitCodes, pretty_exceptions_enable=False)

    @app.command()
    def write() -> None:
        Path("/dev/full").write_bytes(b"x" * 2**20)

    @app.command()
    def read() -> None:
        Path("/nowhere").read_bytes()

    full = CliRunner().invoke(app, ["write"])
    assert full.exit_code == 1
    assert full.stderr.startswith("alignflow: the disk is full")
    assert len(full.stderr.splitlines()) == 1
    with pytest.raises(FileNotFoundError):
        CliRunner().invoke(app, ["read"], catch_exceptions=False)
