"""`python -m alignflow.evaluation.judges RUN_FOLDER`: a classifier from elsewhere gets its card."""

from pathlib import Path

from alignflow.evaluation.judges.config import JUDGE_FOLDER, ClassifierJob
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult, JobSpec
from alignflow.jobs.worker import read_config, run_job
from alignflow.model_source import copy_model


def main(folder: RunFolder, spec: JobSpec) -> JobResult:
    """Write the classifier with its card to the job's output.

    Raises:
        DataError: The model is no classifier, or the labelled texts can't be used.
    """
    job = read_config(folder, spec, ClassifierJob)
    # Imported here: they load torch and scikit-learn, which a bad config needn't wait for.
    from alignflow.evaluation.judges.card import CLASSIFIER_FILE, JudgeCard
    from alignflow.evaluation.judges.classifier import Classifier, ClassifierFile
    from alignflow.evaluation.judges.examples import check_learnable, labelled_examples
    from alignflow.evaluation.judges.measure import measure

    settings = job.settings
    path = Path(settings.labelled)
    found = labelled_examples(job.task, path)
    check_learnable(found, path, num_folds=1)
    made = copy_model(job.model, folder.output / JUDGE_FOLDER)
    asked = ClassifierFile(label=settings.label, max_length=settings.max_length)
    (made / CLASSIFIER_FILE).write_text(asked.model_dump_json(), encoding="utf-8")
    probabilities_N = Classifier.load(made).probabilities([e.statement for e in found.examples])
    card = JudgeCard(
        task=job.task,
        threshold=settings.threshold,
        num_examples=len(found.examples),
        num_positive=sum(example.label for example in found.examples),
        num_repeated=found.num_repeated,
        num_contradictory=found.num_contradictory,
        num_references=found.num_references,
        measured=measure(probabilities_N, found.examples, threshold=settings.threshold),
        licence=settings.licence,
        files=[job.file],
    )
    card.save(made)
    return JobResult(metrics=card.metrics)


if __name__ == "__main__":
    run_job(main)
