"""`python -m alignflow.training.import_gguf RUN_FOLDER`: a GGUF file to a Hugging Face folder.

Quantised weights are read back to float32 and written as safetensors, with the tokenizer and the
chat template that the file carries.
"""

from pathlib import Path

from alignflow.config import Config
from alignflow.errors import DataError
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult, JobSpec
from alignflow.jobs.worker import read_config, run_job


class GgufImport(Config):
    """Config of the job."""

    file: Path
    """GGUF file of a model of the Llama family."""


def import_gguf(file: Path, output: Path) -> int:
    """Write the model as a Hugging Face folder and return its number of parameters.

    Raises:
        DataError: The file is no GGUF model that transformers can read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise DataError(f"{file}: not a GGUF file; give a GGUF model or a Hugging Face folder.")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(
            **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(f"{file}: transformers can't read this GGUF model ({reason}).") from error
    # The quantisation is undone: a reader of the folder must not look for it.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return int(model.num_parameters())


def main(folder: RunFolder, spec: JobSpec) -> JobResult:
    """Run the job."""
    config = read_config(folder, spec, GgufImport)
    num_parameters = import_gguf(config.file, folder.output)
    return JobResult(metrics={"model/num_parameters": float(num_parameters)})


if __name__ == "__main__":
    run_job(main)
