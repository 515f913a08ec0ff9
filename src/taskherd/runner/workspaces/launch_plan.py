"""Decide what a start gives the agent: which command, and whether the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

if TYPE_CHECKING:
    from taskherd.directory_file.run import RunConfig


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """The command of a start, before its placeholders are substituted, and whether the agent is given the prompt."""

    command: tuple[str, ...]
    gives_prompt: bool


def plan_launch(run: RunConfig, *, given: bool, finished: bool, has_session: bool = False) -> LaunchPlan:
    """Return the plan of a start.

    ``given`` says whether an agent in this folder was given this very prompt before, ``finished`` whether that agent
    had finished with it. A prompt that is new or was changed is always given, by the template's ``command``; so is one
    whose session the ``resume_command`` would continue if ``has_session``.
    """
    if not given:
        return LaunchPlan(run.command, gives_prompt=True)
    match run.resume:
        case "prompt":
            return LaunchPlan(run.command, gives_prompt=True)
        case "continue":
            assert run.resume_command is not None
            if not has_session and any("{session}" in each for each in run.resume_command):
                return LaunchPlan(run.command, gives_prompt=True)
            return LaunchPlan(run.resume_command, gives_prompt=False)
        case "nothing":
            return LaunchPlan(run.command, gives_prompt=False)
        case None:
            return LaunchPlan(run.command, gives_prompt=not finished)
        case _:
            assert_never(run.resume)
