"""Runs in MLflow whose process has died: they would be shown as running for ever."""

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from alignflow.tasks.logs import run_logger
from alignflow.tasks.tracking.client import Writer, first_line

_MOST = 1000


def close_runs(uri: str, flow_run_id: str) -> int:
    """Close what a flow run left open in MLflow, stages and all, and return how many runs it was.

    MLflow that is away costs a warning.
    """
    client, write = MlflowClient(uri), Writer(uri)
    try:
        parents = _open_runs(client, f"tags.`prefect.flow_run_id` = '{flow_run_id}'")
        stages = [
            stage
            for parent in parents
            for stage in _open_runs(client, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        ]
        for run in [*stages, *parents]:
            write(client.set_terminated, run.info.run_id, "KILLED")
    except MlflowException as error:
        run_logger().warning("MLflow can't close what a dead run left (%s).", first_line(error))
        return 0
    return len(stages) + len(parents)


def _open_runs(client: MlflowClient, which: str) -> list[Run]:
    experiments = [each.experiment_id for each in client.search_experiments()]
    return list(
        client.search_runs(
            experiments, f"{which} and attributes.status = 'RUNNING'", max_results=_MOST
        )
    )
