from __future__ import annotations

import sys
import uuid
from typing import Any

import pytest

from tests.harness.runner import AGENT, RunnerHarness
from tests.harness.tasks import prompt_of

pytestmark = pytest.mark.timeout(180)

SHELL = 'echo "prompt=$1;"; echo "::taskherd state=$2"; exec sleep 1000'


async def create(harness: RunnerHarness, state: str, **run: Any) -> uuid.UUID:
    """Create a task whose agent writes its prompt and reports this state."""
    await harness.template({"command": ["sh", "-c", SHELL, "sh", "{prompt}", state], "grace": 1, **run})
    task_id = await harness.worker.create()
    await harness.until_state(task_id, state)
    await harness.until_status(task_id, "active")
    return task_id


async def resume(harness: RunnerHarness, task_id: uuid.UUID, prompt: str | None = None) -> None:
    """Pause the task, change its prompt if one is given, and resume it."""
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    if prompt is not None:
        assert (await harness.worker.command("task.update_input", task_id, input=prompt))["ok"]
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_status(task_id, "active")


async def until_prompts(harness: RunnerHarness, task_id: uuid.UUID, *prompts: str) -> None:
    """Wait until the agents have written these prompts, and check that the log shows those that were given."""
    await harness.until_output(task_id, f"prompt={prompts[-1]};")
    expected = [f"prompt={prompt};" for prompt in prompts]
    while (found := [line for text in await harness.output(task_id) for line in text.splitlines()]) != expected:
        assert len(found) < len(expected), found
    assert await harness.inputs(task_id) == [prompt for prompt in prompts if prompt]


async def test_an_unfinished_prompt_is_given_again(harness: RunnerHarness) -> None:
    """By default a resumed agent that was interrupted at work gets its prompt again."""
    await harness.start()
    task_id = await create(harness, "working")
    await resume(harness, task_id)
    await until_prompts(harness, task_id, prompt_of(task_id), prompt_of(task_id))


async def test_a_finished_prompt_is_not_given_again(harness: RunnerHarness) -> None:
    """By default an agent that had finished gets its prompt again only if it was changed, and the log shows that."""
    await harness.start()
    task_id = await create(harness, "idle")
    await resume(harness, task_id)
    await until_prompts(harness, task_id, prompt_of(task_id), "")
    await resume(harness, task_id, "Do more")
    await until_prompts(harness, task_id, prompt_of(task_id), "", "Do more")


async def test_a_resume_may_continue_with_a_command_of_its_own(harness: RunnerHarness) -> None:
    """``resume_command`` gets no prompt; a changed one is given by ``command``."""
    await harness.start()
    command = ["sh", "-c", SHELL, "sh", "continued{prompt}", "working"]
    task_id = await create(harness, "working", resume="continue", resume_command=command)
    await resume(harness, task_id)
    await harness.until_output(task_id, "prompt=continued;")
    assert await harness.inputs(task_id) == [prompt_of(task_id)]
    await resume(harness, task_id, "Do more")
    await harness.until_output(task_id, "prompt=Do more;")
    assert await harness.inputs(task_id) == [prompt_of(task_id), "Do more"]


async def test_a_prompt_that_was_never_given_is_given_by_a_resume(harness: RunnerHarness) -> None:
    """After a start that failed, a resume gives the prompt even with ``resume: nothing``."""
    await harness.start()
    await harness.template({"command": ["/no/such/program"], "resume": "nothing"})
    task_id = await harness.worker.create()
    await harness.until_state(task_id, "failed")
    run = {"command": [sys.executable, str(AGENT), "env", "sleep"], "resume": "nothing", "grace": 1}
    await harness.template(run)
    await resume(harness, task_id)
    await harness.until_output(task_id, f"TASKHERD_PROMPT={prompt_of(task_id)}")
    assert await harness.inputs(task_id) == [prompt_of(task_id)]
