"""Run ``taskherd dev`` as a user would, and find what would worry that user in the lines it prints."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from taskherd.dev import processes
from taskherd.runner.workspaces.processes import MARKER_VARIABLE

TIMEOUT = 120.0
"""Maximum time in seconds until everything runs, and until everything has ended."""
READY = "Ctrl-C stops everything"
"""The end of the last line that ``taskherd dev`` prints before it waits."""
TASKHERD = (sys.executable, "-m", "taskherd")
_ALARM = re.compile(r"Traceback|Exception|Error|Warning|\b(?i:warning|error|critical|failed)\b")


def alarming(lines: Iterable[str]) -> list[str]:
    """Return the lines that were logged at warning or above, or have an exception or a word of that kind."""
    return [line for line in lines if _is_alarming(line)]


def _is_alarming(line: str) -> bool:
    if not line.startswith("{"):
        return _ALARM.search(line) is not None
    entry = json.loads(line)
    return entry["level"] not in {"debug", "info"} or "exception" in entry


@asynccontextmanager
async def session(
    folder: Path, env: Mapping[str, str], *, taskherd: Sequence[str | Path] = TASKHERD, until: Sequence[str] = (READY,)
) -> AsyncIterator[list[str]]:
    """Run ``taskherd dev`` in a folder and yield the lines it prints.

    Check that Ctrl-C ends it with 0 and leaves no process. The list begins with what was printed and logged until each
    text of ``until`` had been, and grows until everything has ended.
    """
    process = await asyncio.create_subprocess_exec(
        *taskherd,
        "dev",
        cwd=folder,
        env={"TASKHERD_API_PORT": "0", "TASKHERD_OPS_PORT": "0", **env},  # another session could choose the same ports
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    lines: list[str] = []
    is_up = asyncio.Event()

    async def collect() -> None:
        assert process.stdout is not None
        missing = set(until)
        async for line in process.stdout:
            lines.append(line.decode().rstrip())
            missing -= {text for text in missing if text in lines[-1]}
            if not missing:
                is_up.set()
        is_up.set()  # or it has ended

    collecting = asyncio.create_task(collect())
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(is_up.wait(), TIMEOUT)
        assert [text for text in until if not any(text in line for line in lines)] == [], lines
        yield lines
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(asyncio.gather(process.wait(), collecting), TIMEOUT)
    assert process.returncode == 0
    assert not processes.belonging_to(folder / ".taskherd" / "worker")
    assert not processes.with_variable(MARKER_VARIABLE, f"{folder}/")
