"""The README's example, run as it is printed."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from tests.harness.worker import ALICE, VERSION, WorkerHarness

README = Path(__file__).parents[2] / "README.md"


async def test_the_example_sends_a_report_and_receives_its_event(harness: WorkerHarness, amqp_url: str) -> None:
    """The README's Python code, with this test's ids and prefix, prints the event of the create, then of the report."""
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    for name, identity in (("ALICE", ALICE), ("CLAUDE", VERSION)):
        example, count = re.subn(rf'(?m)^{name} = "[^"]*"', f'{name} = "{identity}"', example)
        assert count == 1
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        example.replace('"taskherd.', f'"{harness.prefix}.'),
        env={**os.environ, "TASKHERD_AMQP_URL": amqp_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, errors.decode()
    lines = output.decode().splitlines()
    assert lines[0].startswith("dev.taskherd.task.created.v1 1 ")
    assert "Reading the log" in lines[-1]
