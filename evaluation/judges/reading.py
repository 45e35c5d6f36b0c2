"""`python -m alignflow.evaluation.judges.reading RUN_FOLDER`: a judge that reads a language model.

The states of all examples are computed once; what is cross-validated is the probe on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from alignflow.evaluation.judges.calibration import Floats
from alignflow.evaluation.judges.card import JudgeCard
from alignflow.evaluation.judges.config import JUDGE_FOLDER, TrainingJob
from alignflow.evaluation.judges.examples import Example, check_learnable
from alignflow.evaluation.judges.probe import STATES_FOLDER, Probe, ProbeJudge, features
from alignflow.evaluation.judges.states import States, keep_layers
from alignflow.evaluation.judges.train import Rows, fit_judge, read_examples
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult, JobSpec
from alignflow.jobs.worker import raise_if_stop_requested, read_config, run_job
from alignflow.training.import_gguf import import_gguf

# The states after two thirds of the layers tell more than the last ones, which are about the next
# token.
_SHARE_OF_LAYERS = 2 / 3


@dataclass(frozen=True)
class ProbeLearner:
    """Fits probes on states that are computed already."""

    states: States
    examples: Sequence[Example]
    features_NF: Floats
    seed: int

    def fit(self, rows: Rows) -> ProbeJudge:
        """Fit a probe; its penalty is chosen within these examples."""
        chosen = [self.examples[row] for row in rows]
        labels = np.array([example.label for example in chosen])
        sources = [example.source for example in chosen]
        probe = Probe.fit(self.features_NF[rows], labels, sources, seed=self.seed)
        return ProbeJudge(self.states, probe)

    def log_odds(self, judge: ProbeJudge, rows: Rows) -> Floats:
        """Return the judge's log-odds of some of the examples."""
        return judge.probe.log_odds(self.features_NF[rows])


def train(job: TrainingJob, folder: Path) -> JudgeCard:
    """Fit a judge and write it with its card and the layers that it reads.

    Raises:
        DataError: A file or the model can't be used.
    """
    config = job.training
    found = read_examples(config)
    check_learnable(found, Path(config.data), num_folds=config.num_folds)
    num_layers = _take_layers(job.model, folder / STATES_FOLDER)
    states = States.load(folder / STATES_FOLDER)
    statements = [example.statement for example in found.examples]
    features_NF = features(states, statements, raise_if_stop_requested)
    learner = ProbeLearner(states, found.examples, features_NF, config.seed)
    judge, card = fit_judge(config, job.files, found, learner)
    card = card.replaced(language_model=job.language_model, num_layers=num_layers)
    judge.save(folder)
    card.save(folder)
    return card


def _take_layers(model: Path, target: Path) -> int:
    if model.is_dir():
        return keep_layers(model, target, share=_SHARE_OF_LAYERS)
    with TemporaryDirectory() as scratch:
        import_gguf(model, Path(scratch, "model"))
        return keep_layers(Path(scratch, "model"), target, share=_SHARE_OF_LAYERS)


def main(folder: RunFolder, spec: JobSpec) -> JobResult:
    """Write the judge to the job's output."""
    made = folder.output / JUDGE_FOLDER
    made.mkdir()
    return JobResult(metrics=train(read_config(folder, spec, TrainingJob), made).metrics)


if __name__ == "__main__":
    run_job(main)
