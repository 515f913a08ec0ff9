from __future__ import annotations

import pytest

from taskherd.errors import Malformed
from taskherd.runner import template


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
        ([], "Input should be a valid dictionary"),
    ],
)
def test_an_invalid_run_is_rejected_with_its_field(run: object, problem: str) -> None:
    """The error names the field; ``env`` cannot set or inherit the runner's own variables."""
    with pytest.raises(Malformed) as caught:
        template.parse(run)
    assert problem in caught.value.detail
