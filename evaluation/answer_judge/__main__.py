"""`python -m alignflow.evaluation.answer_judge RUN_FOLDER`: a language model compares answers."""

from alignflow.evaluation.answer_judge.config import AnswerJudgeJob
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult, JobSpec
from alignflow.jobs.worker import read_config, run_job


def main(folder: RunFolder, spec: JobSpec) -> JobResult:
    """Have the answers compared that the job's config names.

    Raises:
        ConfigError: The config is no AnswerJudgeJob.
    """
    job = read_config(folder, spec, AnswerJudgeJob)
    # Imported here: it loads torch and megatron, which a bad config needn't wait for.
    from alignflow.evaluation.answer_judge.run import judge_answers

    return judge_answers(job, folder)


if __name__ == "__main__":
    run_job(main)
