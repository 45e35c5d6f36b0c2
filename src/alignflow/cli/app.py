"""The application: its commands, and how errors become exit codes."""

import errno
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from alignflow.cli import (
    compare,
    configs,
    data,
    deploy,
    doctor,
    gc,
    jobs,
    judges,
    models,
    promotion,
    runs,
    stack,
    watch,
)
from alignflow.errors import AlignflowError

INTERRUPTED = 130
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _ExitCodes(TyperGroup):
    """Turns our errors into one sentence on stderr and an exit code; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AlignflowError as error:
            print(f"alignflow: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            if error.errno in _FULL:
                where = f" ({error.filename})" if error.filename else ""
                sentence, code = f"the disk is full{where}; make room and run it again to go on", 1
            elif isinstance(error, FileNotFoundError) and _is_folder_gone():
                sentence, code = "this folder has been deleted; change to one that is there", 2
            else:
                raise
            print(f"alignflow: {sentence}.", file=sys.stderr)
            raise typer.Exit(code) from None
        except KeyboardInterrupt:
            print("alignflow: interrupted; run it again to go on.", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None


def _is_folder_gone() -> bool:
    """Whether the folder that the command was started in is no longer there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


app = typer.Typer(
    cls=_ExitCodes,
    name="alignflow",
    help="From preference data to a promoted, safety-checked language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("run")(runs.run)
app.command("report")(runs.report)
app.command("lineage")(runs.lineage)
app.command("evaluate")(models.evaluate)
app.command("compare")(compare.compare)
app.command("export")(models.export)
app.command("promote")(promotion.promote)
app.command("rollback")(promotion.rollback)
app.command("approvals")(promotion.approvals)
app.command("approve")(promotion.approve)
app.command("reject")(promotion.reject)
app.command("decisions")(promotion.decisions)
app.command("deploy")(deploy.deploy)
app.command("watch")(watch.watch)
app.command("gc")(gc.gc)
app.command("up")(stack.up)
app.command("down")(stack.down)
app.command("status")(stack.status)
app.command("env")(stack.env)
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(judges.app, name="judge")
app.add_typer(configs.app, name="config")
app.command("doctor")(doctor.doctor)
