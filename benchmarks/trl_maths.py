"""What TRL's code makes of given tensors, in its own environment."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from trl_environment import trl_python

_HERE = Path(__file__).parent


def found_by_trl(
    requirement: str,
    script: str,
    given: dict[str, Tensor],
    model: Path,
    config: Mapping[str, Any],
    folder: Path,
) -> dict[str, Tensor]:
    """Return the tensors that a script writes, by name.

    Args:
        requirement: The version, as pip takes it.
        script: A file beside this one; gets the folder, with what follows in it.
        given: The tensors.
        model: Hugging Face folder of a model; TRL needs one, whatever it computes.
        config: Of the trainer, besides what every comparison has.
        folder: For the files of both.
    """
    save_file(given, folder / "given.safetensors")
    for_all = {
        "output_dir": str(folder),
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    settings = {"model": str(model), "config": {**for_all, **config}}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [str(trl_python(requirement)), str(_HERE / script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return load_file(folder / "found.safetensors")
