"""SteerLM: fine-tuning on answers whose prompts name their ratings."""

import os

from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult
from alignflow.training.config import SteerLMConfig, TrainingJob
from alignflow.training.stages.data import load_stage_data
from alignflow.training.stages.sft import fine_tune
from alignflow.training.steering import Steering


def run(config: SteerLMConfig, job: TrainingJob, folder: RunFolder) -> JobResult:
    """Fine-tune the model on rated answers; write it, and what to ask of it, to the output."""
    data = load_stage_data(config, job, folder)
    steering = Steering.of_rows(data.train, config.wanted)
    is_main = os.environ.get("RANK", "0") == "0"
    if is_main:
        steering.save(folder.path)  # an export of a checkpoint takes it from here
    result = fine_tune(config, job, folder, data)
    if is_main:
        steering.save(folder.output)
    details = {
        "wanted": dict(steering.wanted),
        "not_trained": sorted(config.wanted.keys() - steering.wanted.keys()),
    }
    return result.replaced(details={**result.details, **details})
