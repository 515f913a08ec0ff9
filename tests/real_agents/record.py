"""Record a real agent that speaks ACP: ``python -m tests.real_agents.record NAME TRANSCRIPT COMMAND…``.

A follower and a shim run the agent as the runner does, against the scripted model; ``tests/harness/tee_agent.py``
records what passes. ``tests/runner/test_acp_transcripts.py`` carries out the same scenarios with the recordings.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import httpx

from taskherd.dev.ports import find_free
from tests.harness.runner import eventually, eventually_async
from tests.real_agents.environment import CLAUDE_SETTINGS, environment
from tests.runner.acp import AcpRun, acp_run
from tests.runner.acp_scenarios import SCENARIOS

TEE = Path(__file__).parents[1] / "harness" / "tee_agent.py"
MODEL = "tests.real_agents.model"
NOBODY = 65_534
(PORT,) = find_free([18_971])
BASE = f"http://127.0.0.1:{PORT}"


def prepare(run: AcpRun, transcript: Path, command: list[str]) -> None:
    """Have the run's agent recorded, as an ordinary user with a HOME of its own."""
    if os.geteuid() == 0:
        run.uid = NOBODY
        run.task.prepare(NOBODY)
    else:
        run.task.home.mkdir(exist_ok=True)
    settings = run.task.home / ".claude/settings.json"
    settings.parent.mkdir(exist_ok=True)
    settings.write_text(CLAUDE_SETTINGS)
    if run.uid is not None:
        os.chown(settings.parent, run.uid, run.uid)
    run.argv = [sys.executable, str(TEE), str(transcript), *command]
    run.env = {"PATH": os.environ["PATH"], "HOME": str(run.task.home), **environment(BASE)}


async def record(name: str, transcript: Path, command: list[str]) -> None:
    """Carry out a scenario with the agent, and write the transcript."""
    model = await asyncio.create_subprocess_exec(sys.executable, "-m", MODEL, str(PORT))
    try:
        async with httpx.AsyncClient() as client:

            async def listens() -> bool:
                try:
                    return bool(await client.get(f"{BASE}/requests"))
                except httpx.ConnectError:
                    return False

            await eventually_async(listens, bool)
        with tempfile.TemporaryDirectory(prefix="record-") as folder:
            root = Path(folder)
            root.chmod(0o755)
            written = root / "transcript"
            written.touch()
            written.chmod(0o666)
            scenario = SCENARIOS[name]
            async with acp_run(root, **scenario.run) as run:
                prepare(run, written, command)
                try:
                    await scenario.carry_out(run)
                finally:
                    shown = [(entry.get("kind"), entry["content"]) for entry in run.entries()]
                    sys.stdout.write("\n".join([*map(str, shown), *map(str, run.states())]) + "\n")
            await eventually(lambda: written.stat().st_size > 0)
            transcript.write_text(written.read_text().replace(str(run.task.work), "/work").replace(str(root), "/root"))
    finally:
        model.kill()
        await model.wait()


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
