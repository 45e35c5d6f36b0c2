"""The interpreter that runs TRL: a virtual environment of its own over the project's packages.

TRL is no dependency of this project, a benchmark alone meets it. The environment sees what the
project has installed, torch and transformers among it, so that both sides run on the same builds.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

TRL = "trl==1.16.0"

_FOLDER = Path(__file__).parents[1] / ".alignflow" / "bench-venv"


def trl_python() -> Path:
    """Return the interpreter, made at the first call and again when the version changes."""
    python, made_for = _FOLDER / "bin" / "python", _FOLDER / "made-for"
    wanted = f"{TRL} {sys.executable}"
    if made_for.is_file() and made_for.read_text(encoding="utf-8") == wanted:
        return python
    print(f"Making {_FOLDER} with {TRL}.", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(_FOLDER)]
    subprocess.run(command, check=True)
    variables = {"base": str(_FOLDER), "platbase": str(_FOLDER)}
    packages = Path(sysconfig.get_path("purelib", "venv", variables))
    (packages / "project.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install = [*(sys.executable, "-m", "uv", "pip", "install", "--quiet"), "--python", str(python)]
    subprocess.run([*install, "--no-deps", TRL], check=True)
    made_for.write_text(wanted, encoding="utf-8")
    return python
