"""What torchrun starts: `python -m alignflow.evaluation RUN_FOLDER` judges one model."""

from alignflow.evaluation.config import EvaluationJob
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult, JobSpec
from alignflow.jobs.worker import read_config, run_job


def main(folder: RunFolder, spec: JobSpec) -> JobResult:
    """Run the evaluation that the job's config describes.

    Raises:
        ConfigError: The config is no EvaluationJob.
    """
    job = read_config(folder, spec, EvaluationJob)
    # Imported here: it loads torch and megatron, which a bad config needn't wait for.
    from alignflow.evaluation.run import evaluate

    return evaluate(job, folder)


if __name__ == "__main__":
    run_job(main)
