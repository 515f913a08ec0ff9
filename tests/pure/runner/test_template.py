from __future__ import annotations

from typing import Any

import pytest

from taskherd.errors import Malformed
from taskherd.runner import template
from taskherd.runner.workspaces.launch_plan import LaunchPlan, plan_launch


def test_only_command_is_required() -> None:
    """All other fields have a default."""
    run = template.parse({"command": ["true"]})
    assert (run.pool, run.agent, run.workdir, run.idle_after, run.grace) == ("default", "stdio", ".", 10.0, 10.0)


def test_durations_and_sizes_have_units() -> None:
    """Durations and sizes are parsed from texts with units."""
    limits = {"cpu": 1.5, "memory": "512Mi", "timeout": "30m"}
    run = template.parse({"command": ["a", "b"], "agent": "agentapi", "limits": limits, "idle_after": "2s"})
    assert (run.limits.cpu, run.limits.memory, run.limits.timeout, run.idle_after) == (1.5, 512 * 1024**2, 1800, 2)


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        ({}, "pipe"),
        ({"agent": "self"}, "pipe"),
        ({"agent": "agentapi"}, "none"),
        ({"agent": "agentapi", "stdin": "pipe"}, "pipe"),
        ({"stdin": "prompt"}, "prompt"),
    ],
)
def test_the_default_of_stdin_depends_on_the_kind_of_agent(run: dict[str, str], kind: str) -> None:
    """AgentAPI reads a piped stdin to its end before it serves, so it gets none."""
    assert template.parse({"command": ["a"], **run}).stdin_kind == kind


@pytest.mark.parametrize(
    ("run", "given", "finished", "command", "gives_prompt"),
    [
        ({}, False, False, "start", True),
        ({}, False, True, "start", True),
        ({}, True, False, "start", True),
        ({}, True, True, "start", False),
        ({"resume": "prompt"}, True, True, "start", True),
        ({"resume": "nothing"}, False, True, "start", True),
        ({"resume": "nothing"}, True, False, "start", False),
        ({"resume": "continue", "resume_command": ["go on"]}, False, False, "start", True),
        ({"resume": "continue", "resume_command": ["go on"]}, True, False, "go on", False),
        ({"resume": "continue", "resume_command": ["go on"]}, True, True, "go on", False),
    ],
)
def test_what_a_start_gives_the_agent(
    run: dict[str, object], *, given: bool, finished: bool, command: str, gives_prompt: bool
) -> None:
    """A new or changed prompt is always given; one that was given before only as ``resume`` says."""
    plan = plan_launch(template.parse({"command": ["start"], **run}), given=given, finished=finished)
    assert plan == LaunchPlan((command,), gives_prompt=gives_prompt)


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        ({}, "command: Field required"),
        ({"command": []}, "command: "),
        ({"command": "sh -c true"}, "command: "),
        ({"command": ["a\0b"]}, "command.0: "),
        ({"command": ["a"], "colour": 1}, "colour: Extra inputs are not permitted"),
        ({"command": ["a"], "agent": "tty"}, "agent: "),
        ({"command": ["a"], "limits": {"timeout": "soon"}}, "limits.timeout: not a duration"),
        ({"command": ["a"], "limits": {"memory": "lots"}}, "limits.memory: "),
        ({"command": ["a"], "env": {"set": {"TASKHERD_AMQP_URL": "x"}}}, "are reserved for the runner"),
        ({"command": ["a"], "env": {"inherit": ["TASKHERD_SECRET_KEY"]}}, "are reserved for the runner"),
        ({"command": ["a"], "resume": "continue"}, "`resume: continue` and `resume_command` require each other"),
        ({"command": ["a"], "resume_command": ["b"]}, "`resume: continue` and `resume_command` require each other"),
        ({"command": ["a"], "resume": "again"}, "resume: "),
        ({"command": ["a"], "stdin": "tty"}, "stdin: "),
        ({"command": ["a"], "agent": "agentapi", "stdin": "prompt"}, "does not suit `agentapi`"),
        ({"command": ["a"], "on_exit": "working"}, "on_exit: "),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_an_invalid_run_is_rejected_with_its_field(run: object, problem: str) -> None:
    """The error names the field; ``env`` cannot set or inherit the runner's own variables."""
    with pytest.raises(Malformed) as caught:
        template.parse(run)
    assert problem in caught.value.detail


def test_what_the_worker_reads_is_validated_by_the_runner() -> None:
    """``on_loss`` has a short form; without ``stalled_after`` the worker's setting counts."""
    run = template.parse({"command": ["a"], "on_loss": "restart", "stalled_after": "5m"})
    assert (run.on_loss.action, run.on_loss.most, run.stalled_after) == ("restart", 3, 300)
    assert template.parse({"command": ["a"]}).on_loss.action == "nothing"
    assert template.parse({"command": ["a"]}).stalled_after is None
    with pytest.raises(Malformed, match=r"on_loss\.most"):
        template.parse({"command": ["a"], "on_loss": {"action": "restart", "most": 0}})


def test_approvals_have_a_default_and_kinds() -> None:
    """What is not listed is decided by the default, which is to ask; so is a kind that is not known."""
    asks = template.parse({"command": ["a"], "agent": "acp"}).approvals
    assert [asks.of(kind) for kind in ("edit", "other", "expire_after")] == ["ask"] * 3
    policy = {"default": "deny", "edit": "allow", "think": "ask", "expire_after": "1h"}
    run = template.parse({"command": ["a"], "agent": "acp", "approvals": policy})
    kinds = ("edit", "think", "fetch", "dance")
    assert [run.approvals.of(kind) for kind in kinds] == ["allow", "ask", "deny", "deny"]
    assert run.approvals.expire_after == 3600


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        ({"agent": "acp", "stdin": "pipe"}, "`stdin` does not suit `acp`"),
        ({"approvals": {"edit": "allow"}}, "`approvals` requires `agent: acp`"),
        ({"agent": "self", "complete_after_turn": True}, "`complete_after_turn` requires `agent: acp`"),
        ({"agent": "acp", "approvals": {"edit": "always"}}, "approvals.edit"),
        ({"agent": "acp", "approvals": {"dance": "allow"}}, "approvals.dance"),
        ({"agent": "acp", "turn_timeout": 0}, "turn_timeout"),
    ],
)
def test_fields_of_acp_are_checked(run: dict[str, object], problem: str) -> None:
    """Fields that only suit agents that speak ACP are refused for others, and unknown values are named."""
    with pytest.raises(Malformed) as caught:
        template.parse({"command": ["a"], **run})
    assert problem in caught.value.detail


def test_a_session_is_continued_only_if_there_is_one() -> None:
    """A command that names the session of the agent before it is not run without one: the prompt is given again."""
    resumed = {"resume": "continue", "resume_command": ["claude", "--resume", "{session}"]}
    run = template.parse({"command": ["claude"], "output": "claude-stream-json", **resumed})
    plan = plan_launch(run, given=True, finished=True, has_session=True)
    assert plan == LaunchPlan(("claude", "--resume", "{session}"), gives_prompt=False)
    assert plan_launch(run, given=True, finished=True) == LaunchPlan(("claude",), gives_prompt=True)


def test_codex_takes_one_prompt() -> None:
    """Codex reads its stdin to its end before it begins, so that is its prompt, never a pipe for inputs."""
    assert template.parse({"command": ["codex"], "output": "codex-json"}).stdin_kind == "prompt"
    assert template.parse({"command": ["codex"], "output": "codex-json", "stdin": "none"}).stdin_kind == "none"
    with pytest.raises(Malformed, match="to its end first"):
        template.parse({"command": ["codex"], "output": "codex-json", "stdin": "pipe"})


@pytest.mark.parametrize("agent", ["agentapi", "acp", "self"])
def test_only_stdio_has_a_kind_of_output(agent: str) -> None:
    """The output of other kinds of agents is not read as Claude Code's events."""
    with pytest.raises(Malformed, match="requires `agent: stdio`"):
        template.parse({"command": ["x"], "agent": agent, "output": "claude-stream-json"})


def test_the_prompt_is_an_input_where_inputs_are_messages() -> None:
    """Agents that are given messages get the prompt as the first; others have it from their start on."""
    stream = {"output": "claude-stream-json"}
    kinds: list[tuple[dict[str, Any], bool]] = [
        ({}, False), (stream, True), ({**stream, "stdin": "none"}, False), ({"agent": "acp"}, True),
        ({"output": "codex-json"}, False), ({"agent": "agentapi"}, True),
        ({"agent": "agentapi", "post_prompt": False}, False), ({"agent": "self"}, False),
    ]  # fmt: skip
    for run, expected in kinds:
        assert template.parse({"command": ["x"], **run}).takes_prompt_as_input is expected
