"""An agent of the demo: does its job over a checkout step by step, says each step, and ends as its work ended.

`python -m examples.demo.agent --root CHECKOUT --job NAME`. What is done is noted in its folder: started there
again, it goes on where it was. It speaks as an agent of the kind `stdio`, or with `--over http` as one of `self`.
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
"""Seconds between two steps, so that a person can follow."""
DONE: Final = "done.txt"
"""In its folder: the titles of the steps taken, one a line."""
VERDICT: Final = "verdict"
"""In its folder: how its work ended, in its own words."""
_MAX_MESSAGE: Final = 160
_TIMEOUT: Final = 10.0

Say: TypeAlias = Callable[[str, str], None]
"""Tells a state and a message."""


def aloud(state: str, message: str) -> None:
    """Say it in a line of the output, for a runner to read."""
    print(f'::taskherd state={state} message="{_short(message)}"', flush=True)


def over_http(state: str, message: str) -> None:
    """Tell it to the API, with the token that the runner gave us."""
    said = {"state": "failure" if state == "failed" else state, "message": _short(message), "uri": "", "app_slug": ""}
    request = urllib.request.Request(  # noqa: S310 - the runner's own API, over http
        f"{os.environ['TASKHERD_API_URL'].rstrip('/')}/api/v2/workspaceagents/me/app-status",
        data=json.dumps(said).encode(),
        headers={"Coder-Session-Token": os.environ["TASKHERD_AGENT_TOKEN"], "Content-Type": "application/json"},
        method="PATCH",
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310 - as above
        answer.read()


def work(steps: Sequence[Step], folder: Path, say: Say, *, crash_after: int, hang_after: int) -> int:
    """Take the steps that are not noted as done, one at a time; the exit status."""
    noted = folder / DONE
    done = set(noted.read_text().splitlines()) if noted.exists() else set()
    last = ""
    for number, step in enumerate(steps, 1):
        if step.title in done:
            continue
        say("working", f"{number}/{len(steps)} {step.title}")
        found = step.do()
        print(f"{step.title}: {found.output}", flush=True)
        last = _last_line(found.output)
        if not found.succeeded:
            say("failed", f"{step.title}: {last}")
            (folder / VERDICT).write_text("failed")
            return 1
        with noted.open("a") as file:
            file.write(f"{step.title}\n")
        if number == crash_after:
            ctypes.string_at(0)  # what a mistake in a library written in C looks like
        if number == hang_after:
            signal.pause()
        time.sleep(PACE)
    say("complete", f"{len(steps)} steps, the last: {last}")
    (folder / VERDICT).write_text("complete")
    return 0


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--over", choices=("output", "http"), default="output")
    parser.add_argument("--crash-after", type=int, default=0)
    parser.add_argument("--hang-after", type=int, default=0)
    words = parser.parse_args()
    tempfile.tempdir = str(Path.cwd())
    say = over_http if words.over == "http" else aloud
    steps = jobs.steps(words.job, words.root)
    return work(steps, Path.cwd(), say, crash_after=words.crash_after, hang_after=words.hang_after)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE - 1]}…"


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


if __name__ == "__main__":
    sys.exit(main())
