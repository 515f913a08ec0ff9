"""The parts of a template's ``run`` that the worker follows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from taskherd.backoff import Backoff
from taskherd.domain.recovery import RecoveryPolicy
from taskherd.messages.run_policy import default_policy, recovery_policy

DEFAULT = default_policy(1800.0)


@pytest.mark.parametrize(
    ("run", "stalled_after", "restarts", "first_wait"),
    [
        ({}, 1800, 0, 10),
        ({"stalled_after": "5m"}, 300, 0, 10),
        ({"stalled_after": 0}, 0, 0, 10),
        ({"on_loss": "restart"}, 1800, 3, 10),
        ({"on_loss": "nothing"}, 1800, 0, 10),
        ({"on_loss": {"action": "restart", "most": 5, "backoff": "1m"}}, 1800, 5, 60),
        ({"on_loss": {"most": 5}}, 1800, 0, 10),
        ({"stalled_after": "soon", "on_loss": "panic"}, 1800, 0, 10),
        ({"stalled_after": None, "on_loss": [1]}, 1800, 0, 10),
    ],
)
def test_a_policy_is_read_from_run(run: dict[str, Any], stalled_after: int, restarts: int, first_wait: int) -> None:
    """Both forms of ``on_loss`` are read; what is absent or invalid leaves the default."""
    policy = recovery_policy(run, DEFAULT)
    assert policy.stalled_after == timedelta(seconds=stalled_after)
    assert policy.max_loss_restarts == restarts
    assert policy.loss_backoff.longest(1) == first_wait


@pytest.mark.parametrize("seconds", [0.0, 1800.0])
def test_the_default_policy_restarts_nothing(seconds: float) -> None:
    """An agent counts as stalled after the worker's time, and a lost one is not started again."""
    assert default_policy(seconds) == RecoveryPolicy(timedelta(seconds=seconds), 0, Backoff(10.0, 3600.0))


def test_a_run_that_asks_for_nothing_has_the_default_policy() -> None:
    """A task whose template version is not known yet is treated like one whose ``run`` says nothing."""
    assert recovery_policy({}, DEFAULT) == DEFAULT
    assert DEFAULT.loss_backoff.longest(17) == 3600
