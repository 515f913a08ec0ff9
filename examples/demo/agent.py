"""An agent of the demo: executes the steps of a job on a checkout, and reports each step and the result.

Run it as ``python -m examples.demo.agent --root CHECKOUT --job NAME``. It records completed steps in its folder and
continues after them when it is started there again. It is an agent of kind ``stdio``, or of kind ``self`` with
``--over http``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from examples.demo import jobs
from examples.demo.steps import Step

PACE: Final = 1.2
"""Seconds between two steps, so that a person can follow them."""
DONE: Final = "done.txt"
"""File in the agent's folder: the titles of the completed steps, one per line."""
RESULT: Final = "result"
"""File in the agent's folder: ``complete`` or ``failed``."""
_MAX_MESSAGE: Final = 160
_REQUEST_TIMEOUT: Final = 10.0
"""Seconds to wait for the API's answer."""
"""Maximum duration of a request to the API, in seconds."""

Report: TypeAlias = Callable[[str, str], None]
"""A function that reports a state and a message."""


def report_by_output(state: str, message: str) -> None:
    """Report the state with a line of output, which the runner reads."""
    print(f'::taskherd state={state} message="{_short(message)}"', flush=True)


def report_over_http(state: str, message: str) -> None:
    """Report the state to the API, with the token from the runner."""
    body = {"state": "failure" if state == "failed" else state, "message": _short(message), "uri": "", "app_slug": ""}
    request = urllib.request.Request(  # noqa: S310 - the runner's own API, over http
        f"{os.environ['TASKHERD_API_URL'].rstrip('/')}/api/v2/workspaceagents/me/app-status",
        data=json.dumps(body).encode(),
        headers={"Coder-Session-Token": os.environ["TASKHERD_AGENT_TOKEN"], "Content-Type": "application/json"},
        method="PATCH",
    )
    with urllib.request.urlopen(request, timeout=_REQUEST_TIMEOUT) as response:  # noqa: S310 - as above
        response.read()


def work(steps: Sequence[Step], folder: Path, report: Report, *, crash_after: int, hang_after: int) -> int:
    """Execute the steps that are not recorded as done, and return the exit status.

    ``crash_after`` and ``hang_after`` are step numbers after which the agent crashes or hangs; 0 means never.
    """
    file = folder / DONE
    done = set(file.read_text().splitlines()) if file.exists() else set()
    last_line = ""
    for number, step in enumerate(steps, 1):
        if step.title in done:
            continue
        report("working", f"{number}/{len(steps)} {step.title}")
        result = step.do()
        print(f"{step.title}: {result.output}", flush=True)
        last_line = _last_line(result.output)
        if not result.succeeded:
            (folder / RESULT).write_text("failed")  # before whoever sees the report looks for it
            report("failed", f"{step.title}: {last_line}")
            return 1
        with file.open("a") as output:
            output.write(f"{step.title}\n")
        if number == crash_after:
            ctypes.string_at(0)  # a segmentation fault, as from a bug in a C library
        if number == hang_after:
            signal.pause()
        time.sleep(PACE)
    (folder / RESULT).write_text("complete")
    report("complete", f"all {len(steps)} steps done; the last: {last_line}")
    return 0


def main() -> int:
    """Parse the command line, do the job, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--over", choices=("output", "http"), default="output")
    parser.add_argument("--crash-after", type=int, default=0)
    parser.add_argument("--hang-after", type=int, default=0)
    arguments = parser.parse_args()
    tempfile.tempdir = str(Path.cwd())
    report = report_over_http if arguments.over == "http" else report_by_output
    steps = jobs.steps(arguments.job, arguments.root)
    return work(steps, Path.cwd(), report, crash_after=arguments.crash_after, hang_after=arguments.hang_after)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE - 1]}…"


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


if __name__ == "__main__":
    sys.exit(main())
