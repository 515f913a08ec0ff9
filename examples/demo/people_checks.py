"""The demo's checks of what people do about agents: they answer requests, interrupt and steer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from examples import acp_agent
from examples.demo.checks import Evidence, Expectation, describe
from examples.demo.scenarios import ADMIN, LATER, NAME, PERMITTED, QUESTION, REJECTED, STEER, Role
from examples.demo.task_table import DemoTask

_NONE: Final[Mapping[str, Any]] = {}


def check_people(evidence: Evidence) -> list[Expectation]:
    """Check the expectations about requests, answers and interrupts."""
    return [_allowed(evidence), _rejected(evidence), _replied(evidence), _interrupted(evidence), _steered(evidence)]


def _allowed(evidence: Evidence) -> Expectation:
    request = evidence.requests.get(PERMITTED, _NONE)
    outlived = request.get("id") in evidence.observations.open_at_kill
    met = _was_given(request, acp_agent.ALLOW) and outlived and bool(evidence.build_note)
    actual = f"{_describe_request(request)}; build.txt: {evidence.build_note.strip() or 'missing'}"
    return Expectation("a request outlives kill -9 of the runner, and what a person allows is done", met, actual)


def _rejected(evidence: Evidence) -> Expectation:
    request = evidence.requests.get(REJECTED, _NONE)
    met = _was_given(request, acp_agent.REJECT) and bool(evidence.build_note)
    actual = f"{_describe_request(request)}; build.txt is {'still there' if evidence.build_note else 'missing'}"
    return Expectation("what a person rejects is not done", met, actual)


def _replied(evidence: Evidence) -> Expectation:
    request, row = evidence.requests.get(QUESTION, _NONE), _row(evidence, Role.ASKS)
    answer = request.get("answer") or _NONE
    met = request.get("id") == evidence.observations.replied and (answer.get("by"), answer.get("text")) == (ADMIN, NAME)
    met = met and row.state == "complete" and row.message == f"I was told {NAME}."
    return Expectation("an input answers a question", met, f"{_describe_request(request)}; {describe(row)}")


def _interrupted(evidence: Evidence) -> Expectation:
    causes = [each["cause"] for each in evidence.steered_timeline]
    who = {each["actor_name"] for each in causes if each["type"] == "task.send"}
    outcomes = [each["outcome"] for each in causes if each["type"] == "agent.interrupted"]
    before, after = evidence.observations.agent_before_interrupt, evidence.observations.agent_after_interrupt
    met = who == {ADMIN} and outcomes == ["stopped"] and before is not None and before == after
    actual = f"by {', '.join(map(str, who)) or 'no one'}; outcome: {', '.join(map(str, outcomes)) or 'none'}"
    return Expectation("an interrupt by another person ends the turn, and the agent goes on", met, actual)


def _steered(evidence: Evidence) -> Expectation:
    """Expect the input that came with the interrupt before the one that had waited longer."""
    inputs = [each["content"] for each in evidence.steered_conversation if each["type"] == "input"][1:]
    row = _row(evidence, Role.INTERRUPTED)
    met = evidence.observations.queued_before_steer and inputs == [STEER, LATER] and row.state == "idle"
    actual = f"{' '.join(inputs) or 'no input'} | {describe(row)}"
    return Expectation("the input that comes with an interrupt goes before one that waits", met, actual)


def _row(evidence: Evidence, role: Role) -> DemoTask:
    return next(row for row in evidence.rows.values() if row.scenario.role is role)


def _was_given(request: Mapping[str, Any], option_id: str) -> bool:
    """Return whether the agent was given this option by the owner of its task."""
    answer = request.get("answer") or _NONE
    is_given = request.get("state") == "answered" and answer.get("delivered_at") is not None
    return is_given and (answer["by"], answer["option_id"]) == (ADMIN, option_id)


def _describe_request(request: Mapping[str, Any]) -> str:
    if not request:
        return "not asked"
    answer = request["answer"] or _NONE
    given = answer.get("text") or answer.get("option_id") or "no answer"
    return f"{request['title']} {answer.get('by') or '-'}: {given} ({request['state']})"
