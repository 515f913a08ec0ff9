"""`taskherd dev` as a newcomer uses it: what it prints works as printed, and so does the README's story in curl."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from taskherd.dev import processes
from taskherd.runner.workspaces.processes import MARKER_VARIABLE

ROOT = Path(__file__).parents[2]
STORY = "## A task's life, in curl\n"
PATIENCE = 120.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def place(folder: Path) -> dict[str, str]:
    """Make a folder look like a checkout, and return the environment of somebody there."""
    (folder / "deploy").symlink_to(ROOT / "deploy")
    (folder / ".venv/bin").mkdir(parents=True)
    python = folder / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TASKHERD_")}
    return {**kept, "PYTHONPATH": path, "TASKHERD_LOG_LEVEL": "warning"}


@asynccontextmanager
async def session(folder: Path, env: dict[str, str]) -> AsyncIterator[list[str]]:
    """`taskherd dev`, up; the lines it has printed. Ctrl-C ends it with 0, and nothing of it is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "taskherd", "dev", cwd=folder, env=env, stdout=asyncio.subprocess.PIPE
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while not lines or "Ctrl-C stops everything" not in lines[-1]:
                line = await process.stdout.readline()
                assert line, lines
                lines.append(line.decode().rstrip())
        yield lines
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert not processes.belonging_to(folder / ".taskherd" / "worker")
    assert not processes.carrying(MARKER_VARIABLE, f"{folder}/")


async def shell(script: str, folder: Path, env: dict[str, str]) -> str:
    """What bash prints for a script, which must end well."""
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-euo",
        "pipefail",
        "-c",
        script,
        cwd=folder,
        env={name: value for name, value in env.items() if name != "TASKHERD_LOG_LEVEL"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, trouble = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, (said, trouble)
    return said.decode()


def objects(said: str) -> list[Any]:
    """The JSON objects in a text, whatever else is in it."""
    found, at, decoder = [], 0, json.JSONDecoder()
    while (at := said.find("{", at)) >= 0:
        value, at = decoder.raw_decode(said, at)
        found.append(value)
    return found


async def test_what_is_printed_and_what_the_readme_says_works(tmp_path: Path) -> None:
    """The printed curl lines, the README's commands as they stand, and `taskherd task` by `.taskherd/env`."""
    env = place(tmp_path)
    async with session(tmp_path, env) as lines:
        curls = [line.partition(": ")[2].strip() for line in lines if "curl " in line]
        created, listed = [objects(await shell(line, tmp_path, env))[0] for line in curls]
        assert created["initial_prompt"] == "How large is this program?"
        assert [each["id"] for each in listed["tasks"]] == [created["id"]]

        story = (ROOT / "README.md").read_text(encoding="utf-8").partition(STORY)[2].partition("\n## ")[0]
        said = await shell("\n".join(re.findall(r"```sh\n(.*?)```", story, re.DOTALL)), tmp_path, env)
        told = objects(said)
        assert "because" in said
        states = [each["current_state"] for each in told if "initial_prompt" in each and each["current_state"]]
        assert any((each["state"], each["message"]) == ("idle", "Which package?") for each in states)
        assert any((each["state"], each["message"]) == ("complete", "questions answered: 1") for each in states)
        conversation = next(each["logs"] for each in told if "logs" in each)
        assert any(entry["content"].startswith("domain: ") for entry in conversation)
        assert {"204", "202"} <= set(said.split())
        events = re.findall(r"(?m)^event: (.*)$", said)
        assert (events[0], events[-1]) == ("task.snapshot", "task.deleted")

        mine = json.loads(await shell(". .taskherd/env; .venv/bin/python -m taskherd task list -o json", tmp_path, env))
        assert [each["id"] for each in mine] == [created["id"]]
