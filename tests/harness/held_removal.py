"""Run ``taskherd`` as ``prefix`` of its command, so that files named ``held`` stay although they are removed.

The removal of a folder with one goes on until its time is over, as that of very many files does.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

PREFIX = (sys.executable, "-P", __file__)
HELD = "held"


def main(argv: list[str]) -> None:
    """Go on as ``python -m taskherd`` does; ``argv`` is its command line from ``python`` on."""
    unlink = os.unlink

    def unlink_unless_held(path: Any, *, dir_fd: int | None = None) -> None:
        if Path(path).name != HELD:
            unlink(path, dir_fd=dir_fd)

    os.unlink = unlink_unless_held
    sys.argv = argv[2:]
    runpy.run_module("taskherd", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
