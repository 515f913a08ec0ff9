"""``taskherd fleet``: what ``/fleet`` shows, on the command line, with a real API."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from taskherd.cli import fleet
from taskherd.cli.main import app
from taskherd.observability import logs
from tests.api.conftest import StartApi
from tests.api.test_command_line import Shell
from tests.harness.api import OTHER, ApiHarness
from tests.harness.worker import make_report

NOW = "2026-01-01T00:00:00Z"


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Keep the log of the worker, which runs in the same process, out of the output of commands."""
    logs.configure("warning", "auto")


async def run(harness: ApiHarness, *words: str, user: str = "carol", **env: str) -> Result:
    """Run ``taskherd fleet``."""
    environ = {**Shell(harness, user).env, **env}
    return await asyncio.to_thread(CliRunner().invoke, app, ["fleet", *words], env=environ)


def tables(text: str) -> dict[str, list[list[str]]]:
    """Return the words of each row of the tables, by the first word of their headings."""
    found = {}
    for block in text.strip().split("\n\n")[1:]:
        heading, *rows = block.splitlines()
        found[heading.split()[0]] = [row.split() for row in rows]
    return found


async def test_the_fleet_is_told_in_tables(start_api: StartApi) -> None:
    """Pools, runners, what waits for what, workers and queues; members see neither workers nor queues of workers."""
    async with start_api() as harness:
        worker = harness.worker
        await worker.database.execute(f"UPDATE organizations SET active = false WHERE id = '{OTHER}'")
        assert (await worker.ask({"type": "runner.hello", "runner": "r1", "pool": "default"}))["ok"]
        task_id = uuid.UUID((await harness.create(name="runs"))["id"])
        claim = {"type": "build.claim", "task_id": str(task_id), "build_number": 1, "runner": "r1"}
        assert (await worker.ask(claim))["granted"]
        await worker.make_active(task_id)
        await harness.create(harness.bob, name="queued")
        await worker.report({"type": "no.such.type"})
        await worker.until_row("SELECT sum(letters) FROM dead_letter_rates", is_=1)
        body = json.loads((await run(harness, "-o", "json")).stdout)
        assert set(body) == set((await harness.carol.get("/fleet")).json())
        result = await run(harness)
        assert (result.exit_code, result.stderr) == (0, "")
        summary = dict(line.split(maxsplit=1) for line in result.stdout.split("\n\n")[0].splitlines())
        found = tables(result.stdout)
        assert (summary["agents"], summary["waiting"].rpartition(" ")[0]) == ("1", "1, the oldest for")
        assert [row[:3] for row in found["POOL"]] == [["default", "1", "1"]]
        (runner,) = found["RUNNER"]
        assert runner[:5] == ["r1", "default", "not", "connected", "1"]
        assert [row[:4] for row in found["TASK"]] == [["bob/queued", "workspace.start", "pool", "default"]]
        assert len(found["WORKER"]) == 1
        assert [row[0].rpartition(".")[2] for row in found["QUEUE"]] == ["reports", "commands", "claims"]
        assert found["REASON"][0][1] == "1"
        narrow = (await run(harness, COLUMNS="60")).stdout
        assert max(map(len, narrow.splitlines())) <= 60
        assert set(tables(narrow)) == set(found)
        member = await run(harness, user="alice")
        assert set(tables(member.stdout)) == {"POOL", "RUNNER"}
        assert "shown to admins of all organizations" in member.stderr
        assert (await run(harness, TASKHERD_TOKEN="wrong")).exit_code == 4


async def test_lost_tasks_and_deletions_are_told(start_api: StartApi) -> None:
    """A runner has the number of its lost tasks, and what is left of a deleted task is marked."""
    async with start_api() as harness:
        worker = harness.worker
        await worker.database.execute(f"UPDATE organizations SET active = false WHERE id = '{OTHER}'")
        assert (await worker.ask({"type": "runner.hello", "runner": "r1", "pool": "default"}))["ok"]
        await harness.create(name="gone")
        assert (await harness.alice.delete("/tasks/me/gone")).status_code == 202
        task_id = uuid.UUID((await harness.create(name="lost"))["id"])
        claim = {"type": "build.claim", "task_id": str(task_id), "build_number": 1, "runner": "r1"}
        assert (await worker.ask(claim))["granted"]
        await worker.make_active(task_id)
        await worker.report(make_report("agent.disconnected", task_id, build_number=1))
        lost = "SELECT health FROM task_index WHERE task_id = $1 AND term = 'runner:r1'"
        await worker.until_row(lost, task_id, is_="lost")
        found = tables((await run(harness)).stdout)
        assert found["RUNNER"][0][:4] + found["RUNNER"][0][5:6] == ["r1", "default", "not", "connected", "1"]
        assert {tuple(row[:2]) for row in found["TASK"]} == {("alice/gone", "(deleted)")}


def test_what_is_not_known_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pools, workers or an answer of the broker, it says so, and what to do; names keep no control codes."""
    monkeypatch.setenv("COLUMNS", "100")
    rates = [{"hour": NOW, "created": 2, "completed": 1, "failed": 0}] * 24
    empty: dict[str, Any] = {
        "sees_all": True, "now": NOW, "broker": False, "pools": [], "waiting": [], "workers": [], "queues": [],
        "dead_letters": {"messages": None, "oldest_at": None, "reasons": []}, "rates": rates,
    }  # fmt: skip
    fleet.print_fleet(empty)
    out, err = capsys.readouterr()
    assert out.splitlines() == ["agents    0", "last day  48 created, 24 completed, 0 failed"]
    assert "RabbitMQ does not answer" in err
    assert "taskherd directory apply" in err
    assert "taskherd worker" in err
    runner = {
        "name": "r\x1b1", "listed": True, "agents": 0, "lost": 0, "last_heard_at": None, "waiting_since": None,
        "queue": None,
    }  # fmt: skip
    pool = {
        "name": "big", "templates": ["claude", "codex"], "agents": 0, "waiting": 120, "waiting_since": NOW,
        "queue": None, "runners": [runner],
    }  # fmt: skip
    bare = {**pool, "name": "bare", "runners": [], "waiting": 0, "waiting_since": None}
    letters = {"messages": 3, "oldest_at": NOW, "reasons": []}
    fleet.print_fleet({**empty, "broker": True, "pools": [pool, bare], "dead_letters": letters})
    out, err = capsys.readouterr()
    assert "r\\x1b1  big   no queue seen" in out
    assert "dead letters  3, the oldest for " in out
    assert "start one with: TASKHERD_RUNNER_POOL=bare taskherd runner" in err
    assert "Only the 0 tasks that wait longest are listed, of 120." in err
