"""The interpreter that runs TRL: a virtual environment of its own over the project's packages.

TRL is no dependency of this project, a benchmark alone meets it. Each version has an environment,
which sees what the project has installed, torch and transformers among it, so that both sides run
on the same builds.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

_FOLDER = Path(__file__).parents[1] / ".alignflow" / "bench-venvs"


def trl_python(requirement: str) -> Path:
    """Return the interpreter of a version, made at the first call.

    Args:
        requirement: As pip takes it, such as `trl==1.16.0`.
    """
    folder = _FOLDER / requirement.replace("==", "-")
    python, made_for = folder / "bin" / "python", folder / "made-for"
    wanted = f"{requirement} {sys.executable}"
    if made_for.is_file() and made_for.read_text(encoding="utf-8") == wanted:
        return python
    print(f"Making {folder} with {requirement}.", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)]
    subprocess.run(command, check=True)
    variables = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", variables))
    (packages / "project.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install = [*(sys.executable, "-m", "uv", "pip", "install", "--quiet"), "--python", str(python)]
    subprocess.run([*install, "--no-deps", requirement], check=True)
    made_for.write_text(wanted, encoding="utf-8")
    return python
