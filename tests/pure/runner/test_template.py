from __future__ import annotations

import pytest

from taskherd.errors import Malformed
from taskherd.runner import template


def test_a_command_is_all_that_is_needed() -> None:
    """Everything else has a default."""
    run = template.parse({"command": ["true"]})
    assert (run.pool, run.agent, run.workdir, run.idle_after, run.grace) == ("default", "stdio", ".", 10.0, 10.0)


def test_everything_can_be_said_as_people_write_it() -> None:
    """Durations and sizes with their units."""
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
        ({"command": ["a"], "env": {"set": {"TASKHERD_AMQP_URL": "x"}}}, "are the runner's"),
        ({"command": ["a"], "env": {"inherit": ["TASKHERD_SECRET_KEY"]}}, "are the runner's"),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_what_is_wrong_is_said_to_who_wrote_it(run: object, problem: str) -> None:
    """The error names the field, and an environment can't reach for the runner's own secrets."""
    with pytest.raises(Malformed) as caught:
        template.parse(run)
    assert problem in caught.value.detail
