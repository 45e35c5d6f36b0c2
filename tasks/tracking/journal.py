"""Write-once notes on a registered model: what the registry itself has no means to serialise.

MLflow points an alias at whatever the last caller says, and can neither compare and swap nor write
two aliases at once. A parameter of a run, though, is written once: the database's primary key
refuses a second value. The journal of a model is a run whose parameters are its notes, in the
experiment `alignflow-decisions`; MLflow's pages show it, and its API can add notes but not change
one. The tag `alignflow.journal` of the model names the run.
"""

from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from alignflow.tasks.tracking.client import Writer, find_experiment

JOURNAL_TAG = "alignflow.journal"
EXPERIMENT = "alignflow-decisions"

MAX_NOTE_CHARS = 6000
"""MLflow cuts longer parameters."""


class Journal:
    """The notes of one model, on one client."""

    def __init__(self, client: MlflowClient, write: Writer, run_id: str) -> None:
        self._client = client
        self._write = write
        self.run_id = run_id

    def read(self) -> Mapping[str, str]:
        """Return all notes by name."""
        notes: dict[str, str] = self._client.get_run(self.run_id).data.params
        return notes

    def write_once(self, name: str, text: str) -> bool:
        """Write a note unless there is one of this name; return whether this one stands there.

        Raises:
            ValueError: The text is too long to be kept whole.
            MlflowException: MLflow can't be reached, or the journal's run was deleted.
        """
        if len(text) > MAX_NOTE_CHARS:
            raise ValueError(f"a note of {len(text)} characters; {MAX_NOTE_CHARS} fit")
        try:
            self._write(self._client.log_param, self.run_id, name, text)
        except MlflowException:
            # A refusal, or an answer that was lost on its way: the note itself tells.
            standing = self.read().get(name)
            if standing is None:
                raise
            return standing == text
        return True


def start_journal(client: MlflowClient, write: Writer, name: str) -> str:
    """Start an empty journal for a model; it counts once the model's tag names it.

    Returns:
        The id of its run.
    """
    experiment = find_experiment(client, EXPERIMENT, None)
    run = write(client.create_run, experiment, run_name=name, tags={"alignflow.model": name})
    write(client.set_terminated, run.info.run_id, "FINISHED")
    return str(run.info.run_id)
