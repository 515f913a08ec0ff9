"""The OpenAPI document is correct: all responses to requests that schemathesis generates from it conform to it."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from taskherd.messages.agent_tokens import agent_token
from tests.api.conftest import StartApi
from tests.harness.api import VERSION
from tests.harness.asking import asked
from tests.harness.worker import SECRET

SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))
SEED = os.environ.get("FUZZ_SEED", "2026")
CONFIG = Path(__file__).with_name("schemathesis.toml")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 240)]


async def test_responses_conform_to_the_document(
    start_api: StartApi, tmp_path: Path, announce: Callable[[str], None]
) -> None:
    """No response fails any check of schemathesis; ``make fuzz`` runs for ten minutes instead of one."""
    async with start_api(log_entries_rate=1_000_000, log_bytes_rate=2**30) as api_harness:
        names = [f"fuzz-{number}" for number in range(6)]
        task = await api_harness.active(name=names[0])
        for name in names[1:]:
            await api_harness.create(name=name)
        request_id = await asked(api_harness, uuid.UUID(task["id"]))
        body = {"action": "resume", "q": "owner:me"}
        action = (await api_harness.alice.post("/task-actions", json=body)).json()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from schemathesis.cli import schemathesis; schemathesis()",
            *("--config-file", str(CONFIG)),
            *("run", f"{api_harness.base}/api/v2/openapi.json"),
            *("--header", f"Coder-Session-Token: {api_harness.tokens['alice']}"),
            *("--max-time", str(SECONDS), "--seed", SEED, "--no-color"),
            cwd=tmp_path,
            env={
                **os.environ,
                "SCHEMATHESIS_HOOKS": "tests.api.fuzz_hooks",
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
                "FUZZ_TASKS": ",".join(names),
                "FUZZ_VERSION": str(VERSION),
                "FUZZ_ACTION": action["id"],
                "FUZZ_REQUEST": str(request_id),
                "FUZZ_AGENT_TOKEN": agent_token(SECRET, uuid.UUID(task["id"]), 1),
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            stdout, _ = await asyncio.wait_for(process.communicate(), SECONDS + 180)
        finally:
            if process.returncode is None:
                process.kill()
        output = stdout.decode()
        announce(f"schemathesis:{output.partition('Test cases:')[2].partition('Seed:')[0].rstrip()} in {SECONDS} s")
        assert process.returncode == 0, output[-20_000:]
        assert api_harness.api.metrics.registry.get_sample_value("taskherd_api_crashes_total") == 0
