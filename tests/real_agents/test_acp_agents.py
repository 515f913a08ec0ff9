"""Each real agent that speaks ACP, as its shipped template starts it: an approved and a rejected tool, and a resume."""

from __future__ import annotations

import json
import sys
import time

import pytest

from tests.harness.runner import RunnerHarness, eventually
from tests.harness.templates import shipped_run
from tests.real_agents.conftest import ModelServer, start_runner
from tests.real_agents.states import judge, sampled, turns_of

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]

TEMPLATES = ("claude-code", "codex", "gemini", "opencode")
REJECTED = {
    "claude-code": "refused permission",
    "codex": "was rejected",
    "gemini": "by the user",
    "opencode": "I run the",
}
"""Part of the state's message after a tool was rejected: what the agent's model or the agent itself says then."""
LAG = 0.5
"""Seconds within which a state should show."""
LONGEST_LAG = 5.0
"""Seconds within which it must show, also on a busy machine."""
AFTERWARDS = 24
"""Number of samples after a turn."""
SESSIONS = ("claude-code", "codex", "opencode")
"""The agents that can continue a session."""


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(("policy", "is_run"), [("allow", True), ("deny", False)])
async def test_a_tool_runs_as_the_policy_says(
    acp_runner: RunnerHarness, template: str, policy: str, *, is_run: bool
) -> None:
    """A command runs if the policy allows it, and otherwise the turn ends without it; either is told to the task."""
    harness = acp_runner
    await harness.template({**shipped_run(f"{template}.yaml"), "approvals": {"default": policy}})
    task_id = await harness.worker.create(input="run: echo it is done > result; cat result")
    await harness.until_state(task_id, "idle", "The command printed: it is done" if is_run else REJECTED[template])
    assert (harness.work(task_id) / "project/result").exists() == is_run
    assert (await harness.worker.command("task.delete", task_id))["ok"]
    await eventually(lambda: not harness.marked(task_id))


@pytest.mark.parametrize("template", SESSIONS)
async def test_an_agent_continues_its_session(
    acp_runner: RunnerHarness, model: ModelServer, acp_path: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner is killed in a turn, the next one sees its end; a resumed task continues its session."""
    harness = acp_runner
    await harness.template({**shipped_run(f"{template}.yaml"), "approvals": {"default": "allow"}})
    task_id = await harness.worker.create(input="run: sleep 8; echo it is done > result; cat result")
    await harness.until_state(task_id, "working", "sleep 8")
    await harness.runners[0].kill()
    await start_runner(harness, model, acp_path, monkeypatch)
    await harness.until_state(task_id, "idle", "The command printed: it is done")
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_status(task_id, "active")
    assert (await harness.worker.command("task.send", task_id, input="Good night"))["ok"]
    await harness.until_state(task_id, "idle", "Good night")
    output = await harness.output(task_id)
    assert not any("begins a new one" in text for text in output)
    answer = "The command printed: it is done"
    assert sum(answer in text for text in output) == 1, output  # it is told once, whichever runner was up
    assert (harness.work(task_id) / "project/result").read_text() == "it is done\n"
    assert (await harness.worker.command("task.delete", task_id))["ok"]
    await eventually(lambda: not harness.marked(task_id))


@pytest.mark.parametrize("template", TEMPLATES)
async def test_a_request_outlives_its_runner(
    acp_runner: RunnerHarness, model: ModelServer, acp_path: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner is killed while a person thinks; the same process gets the answer from the next one, and goes on."""
    harness = acp_runner
    await harness.template({**shipped_run(f"{template}.yaml"), "approvals": {"default": "ask"}})
    task_id = await harness.worker.create(input="run: echo it is done > result; cat result")
    await eventually(lambda: harness.worker.document(task_id).get("requests_open"), 120)
    agent = harness.agent(task_id)["agent"]
    await harness.runners[0].kill()
    await start_runner(harness, model, acp_path, monkeypatch)
    row = await harness.worker.database.fetchrow("SELECT request_id, report::text FROM agent_requests")
    options = json.loads(row["report"])["options"]
    (option_id,) = [option["id"] for option in options if option["kind"] == "allow_once"]
    given = {"request_id": str(row["request_id"]), "option_id": option_id}
    assert (await harness.worker.command("task.answer", task_id, **given))["ok"]
    await harness.until_state(task_id, "idle", "The command printed: it is done")
    assert harness.agent(task_id)["agent"] == agent


@pytest.mark.parametrize("template", TEMPLATES)
async def test_an_agent_is_steered_and_killed(acp_runner: RunnerHarness, template: str) -> None:
    """A steer ends a turn and begins another; an agent that is killed in a turn has failed, and leaves nothing."""
    harness = acp_runner
    await harness.template({**shipped_run(f"{template}.yaml"), "approvals": {"default": "allow"}})
    task_id = await harness.worker.create(input="run: tail -f /dev/null")
    await harness.until_state(task_id, "working", "tail -f")
    assert (await harness.worker.command("task.send", task_id, input="Thank you", interrupt=True))["ok"]
    await harness.until_state(task_id, "idle", "You said: Thank you")
    assert (await harness.worker.command("task.send", task_id, input="run: tail -f /dev/null"))["ok"]
    await harness.until_state(task_id, "working", "tail -f")
    harness.kill(harness.agent(task_id)["agent"])
    await harness.until_state(task_id, "failed", "signal 9")
    await eventually(lambda: not harness.marked(task_id))


@pytest.mark.parametrize("template", TEMPLATES)
async def test_a_turn_completes_a_task_if_the_template_says_so(acp_runner: RunnerHarness, template: str) -> None:
    """With ``complete_after_turn`` the end of the prompt's turn is that of the task's work."""
    harness = acp_runner
    approvals = {"default": "allow"}
    await harness.template({**shipped_run(f"{template}.yaml"), "approvals": approvals, "complete_after_turn": True})
    task_id = await harness.worker.create(input="run: echo it is done > result; cat result")
    await harness.until_state(task_id, "complete", "The command printed: it is done")


@pytest.mark.parametrize("template", TEMPLATES)
async def test_the_state_is_what_the_model_server_knows(
    acp_runner: RunnerHarness, model: ModelServer, template: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sampled four times a second, the state is ``working`` exactly while a turn calls its model and its tool."""
    harness = acp_runner
    await harness.template({**shipped_run(f"{template}.yaml"), "approvals": {"default": "allow"}})
    task_id = await harness.worker.create(input="run: sleep 3; echo it is done > result; cat result")
    async with sampled(lambda: harness.worker.state(task_id).get("state", "")) as samples:
        await harness.until_state(task_id, "idle", "The command printed: it is done")
        count = len(samples)
        await eventually(lambda: len(samples) > count + AFTERWARDS)
        sent = time.time()
        assert (await harness.worker.command("task.send", task_id, input="Thank you"))["ok"]
        await harness.until_state(task_id, "idle", "You said: Thank you")
        count = len(samples)
        await eventually(lambda: len(samples) > count + AFTERWARDS)
    turns = turns_of(await model.spans(), sent)
    late, lost = (judge(samples, turns, sent, lag) for lag in (LAG, LONGEST_LAG))
    with capsys.disabled():
        sys.stdout.write(f"\n{template}: {late.wrong} of {late.judged} samples are wrong beyond {LAG} s of lag\n")
    assert lost.judged
    assert not lost.wrong, samples
