"""Run the demo: ``python -m examples.demo [--data FOLDER]``, or ``make demo``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.demo import main as demo
from taskherd.errors import Misconfigured, Unavailable


def main() -> int:
    """Parse the command line, run the demo and return its exit code: 2 for a wrong setting, 1 for an outage."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description="Run the whole system with fourteen agents for a minute, and check the results.",
    )
    parser.add_argument("--data", type=Path, default=demo.DATA, help="Folder for all data (default: %(default)s).")
    try:
        return demo.run(parser.parse_args().data)
    except Misconfigured as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except Unavailable as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
