"""A clock of some processes that can be set while they run: `clock.c` in front of libc's."""

import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_SOURCE = Path(__file__).with_name("clock.c")
_COMPILER = os.environ.get("CC", "cc")

missing_compiler = "" if shutil.which(_COMPILER) else f"there is no C compiler {_COMPILER!r}"


@dataclass(frozen=True)
class Clock:
    """What processes that are started with `environment` take for the time of day."""

    folder: Path

    @classmethod
    def made_in(cls, folder: Path) -> Self:
        """Compile the clock into a folder, and set it to the time that it is."""
        clock = cls(folder)
        command = [_COMPILER, "-shared", "-fPIC", "-O2", "-o", str(clock._library), str(_SOURCE)]
        subprocess.run([*command, "-ldl"], check=True)
        clock.set(0)
        return clock

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that is to have this clock, and its children."""
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self._offset)}

    @property
    def _library(self) -> Path:
        return self.folder / "clock.so"

    @property
    def _offset(self) -> Path:
        return self.folder / "offset"

    def set(self, seconds: int) -> None:
        """Set it so many seconds ahead of the time that it is, or back, at once for all."""
        # In place: it is mapped into the memory of those that run.
        with self._offset.open("r+b" if self._offset.exists() else "xb") as file:
            file.write(struct.pack("=q", seconds))
