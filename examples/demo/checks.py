"""The demo's final checks: expectations, and whether each was met."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from examples.demo.scenario_runner import ENDED, NEW_PROMPT, QUESTIONS, Observations
from examples.demo.scenarios import Role
from examples.demo.task_table import DemoTask
from taskherd.messages.dead_letters import DeadLetter

GARBAGE_REASONS = frozenset({"not_json", "invalid"})


@dataclass(frozen=True, slots=True)
class Expectation:
    """An expectation, whether it was met, and what actually happened."""

    expected: str
    met: bool
    actual: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """The observations that the checks use."""

    rows: Mapping[str, DemoTask]
    observations: Observations
    dead_letters: Sequence[DeadLetter] = ()
    results: Mapping[str, str | None] = field(default_factory=dict)
    """The result that each agent wrote into its folder, by job."""
    done: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The completed steps that each agent wrote into its folder, by job."""
    conversation: Sequence[Mapping[str, Any]] = ()
    """The conversation with the agent that answers inputs, from the API."""
    repaired: str = ""
    """Output of the tests in the fixed repository and its last commit; "" unless the tests pass."""
    requests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the agent that asks people has asked, by title, from the API."""
    build_note: str = ""
    """The file that this agent was allowed to write, and not to remove."""
    steered_conversation: Sequence[Mapping[str, Any]] = ()
    """The conversation with the agent that is interrupted, from the API."""
    steered_timeline: Sequence[Mapping[str, Any]] = ()
    """The changes of its task, from the API."""


def check(evidence: Evidence) -> list[Expectation]:
    """Check the expectations that hold when all scenarios are finished."""
    rows = [*evidence.rows.values()]
    return [_created(rows, evidence.observations), *_each_role(rows, evidence), _adopted(evidence.observations)]


def check_shutdown(
    rows: Iterable[DemoTask],
    stored: Mapping[UUID, int],
    documents: Mapping[str, Mapping[str, Any]],
    processes: Sequence[int],
) -> list[Expectation]:
    """Check the expectations that hold when all tasks are paused.

    Args:
        rows: the tasks as the change events show them.
        stored: the version of each task in the database.
        documents: the task documents from the API, by name.
        processes: the pids of agents that are still running.
    """
    rows = [*rows]
    not_paused = [describe(row) for row in rows if not row.deleted and row.status != "paused"]
    paused = Expectation("every remaining task is paused", not not_paused, "; ".join(not_paused) or "all of them")
    has_ids = all(row.task_id is not None for row in rows)
    agents = Expectation(
        "no agent process is left", has_ids and not processes, f"still running: {processes}" if processes else "none"
    )
    return [paused, agents, _agree(rows, stored, documents)]


def _each_role(rows: Sequence[DemoTask], evidence: Evidence) -> Iterator[Expectation]:
    yield _plain([row for row in rows if row.scenario.role is Role.PLAIN], evidence)
    yield from (_OF_ROLE[row.scenario.role](row, evidence) for row in rows if row.scenario.role in _OF_ROLE)


def _created(rows: Sequence[DemoTask], observations: Observations) -> Expectation:
    met = all(row.scenario.job in observations.created for row in rows)
    return Expectation("every task is created over HTTP", met, f"{len(observations.created)} of {len(rows)}")


def _plain(rows: Sequence[DemoTask], evidence: Evidence) -> Expectation:
    """Check the agents without a special role: they may fail, if their tasks show the failure."""
    wrong = [row for row in rows if not _ended_as_reported(row, evidence)]
    states = ", ".join(f"{row.scenario.job} {row.state}" for row in rows)
    actual = "; ".join(describe(row) for row in wrong) or states
    return Expectation("agents without a special role finish with the state they reported", not wrong, actual)


def _ended_as_reported(row: DemoTask, evidence: Evidence) -> bool:
    """Return whether a task shows the result of its agent: status error if it failed, else active."""
    status = "active" if row.state == "complete" else "error"
    return row.state in ENDED and row.state == evidence.results.get(row.scenario.job) and row.status == status


def _failed(row: DemoTask, evidence: Evidence) -> Expectation:
    met = _ended_as_reported(row, evidence) and row.state == "failed" and "SyntaxError" in row.message
    return Expectation("the agent that compiles a broken file fails with the compiler's message", met, describe(row))


def _fixed(row: DemoTask, evidence: Evidence) -> Expectation:
    met = row.state == "complete" and row.status == "active" and bool(evidence.repaired)
    return Expectation(
        "the agent that fixes a bug commits the fix, and the tests pass", met, f"{row.message} | {evidence.repaired}"
    )


def _inputs_delivered(row: DemoTask, evidence: Evidence) -> Expectation:
    """Expect each input in the conversation once and in order, and an answer to each except the last."""
    conversation = [(each["type"], each["content"]) for each in evidence.conversation]
    inputs = [content for kind, content in conversation if kind == "input"][1:]  # the first is the prompt
    answered = [content.partition(":")[0] for kind, content in conversation if kind == "output"]
    met = inputs == [*QUESTIONS] and answered == [*QUESTIONS[:-1]] and row.state == "complete"
    texts = "; ".join(content for _, content in conversation[1:])
    actual = f"{evidence.observations.queued} inputs waited in the inbox; {texts}"
    return Expectation("inputs are answered in order, and the last one completes the task", met, actual)


def _resumed(row: DemoTask, evidence: Evidence) -> Expectation:
    before, done = evidence.observations.done_before_resume, evidence.done.get(row.scenario.job, ())
    met = (
        "paused" in row.statuses
        and evidence.observations.processes.get(row.scenario.job) == 0
        and _ended_as_reported(row, evidence)
    )
    met = met and 0 < len(before) < len(done) == len(set(done)) and [*done[: len(before)]] == before
    met = met and row.document.get("initial_prompt") == NEW_PROMPT
    actual = (
        f"{len(before)} steps before the pause, {len(done) - len(before)} after it; "
        f"prompt: {row.document.get('initial_prompt')}"
    )
    return Expectation(
        "the paused task continued where it stopped, repeated no step, and has its new prompt", met, actual
    )


def _crashed(row: DemoTask, _evidence: Evidence) -> Expectation:
    met = row.state == "failed" and "SIGSEGV" in row.message and row.status == "error"
    return Expectation("the task of the agent that crashed has failed, with the signal", met, describe(row))


def _timed_out(row: DemoTask, evidence: Evidence) -> Expectation:
    met = (
        row.state == "failed"
        and "exceeded its time limit" in row.message
        and evidence.observations.processes.get(row.scenario.job) == 0
    )
    return Expectation("the agent that hung was stopped at its timeout", met and row.status == "error", describe(row))


def _deleted(row: DemoTask, evidence: Evidence) -> Expectation:
    observations = evidence.observations
    met = row.deleted and observations.folder_gone and observations.processes.get(row.scenario.job) == 0
    actual = "no folder and no process is left" if met else "its folder, a process or the task is left"
    return Expectation("the task that was deleted while it worked is gone, with its agent and its folder", met, actual)


def _self_reported(row: DemoTask, evidence: Evidence) -> Expectation:
    met = _ended_as_reported(row, evidence) and row.messages > 1
    return Expectation("the agent that reports its own status finishes with the state it reported", met, describe(row))


def _dead_lettered(row: DemoTask, evidence: Evidence) -> Expectation:
    reasons = {letter.reason for letter in evidence.dead_letters if letter.origin.routing_key == str(row.task_id)}
    met = reasons == GARBAGE_REASONS and _ended_as_reported(row, evidence)
    actual = f"{', '.join(sorted(reasons)) or 'no dead letter'}; the task is {row.state}"
    return Expectation("invalid messages are dead-lettered with a reason, and their task continues", met, actual)


_OF_ROLE: Final[Mapping[Role, Callable[[DemoTask, Evidence], Expectation]]] = {
    Role.FAILS: _failed,
    Role.FIXES: _fixed,
    Role.ANSWERS: _inputs_delivered,
    Role.PAUSED: _resumed,
    Role.CRASHES: _crashed,
    Role.HANGS: _timed_out,
    Role.DELETED: _deleted,
    Role.SELF_REPORTING: _self_reported,
    Role.GARBAGE: _dead_lettered,
}


def _adopted(observations: Observations) -> Expectation:
    survivors = observations.alive_before & observations.alive_after  # more agents may have started meanwhile
    met = observations.adopted > 0 and bool(survivors) and survivors == observations.alive_before
    actual = (
        f"{len(survivors)} of {len(observations.alive_before)} agents survived; "
        f"the next runner adopted {observations.adopted}"
    )
    return Expectation("agents survive kill -9 of their runner, and the next runner adopts them", met, actual)


def _agree(
    rows: Sequence[DemoTask], stored: Mapping[UUID, int], documents: Mapping[str, Mapping[str, Any]]
) -> Expectation:
    """Check that the last event of each task has the stored version and the content that the API returns."""
    different = [row.scenario.name for row in rows if row.task_id is None or stored.get(row.task_id) != row.version]
    different += [
        row.scenario.name
        for row in rows
        if not row.deleted and not _same(row.document, documents.get(row.scenario.name, {}))
    ]
    actual = f"different: {', '.join(different)}" if different else f"{len(rows)} tasks, the same in all three"
    return Expectation("events, database and API agree on every task", bool(rows) and not different, actual)


def _same(event: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    names = ("id", "status", "current_state", "workspace_build_number", "updated_at")
    return bool(document) and all(event.get(name) == document.get(name) for name in names)


def describe(row: DemoTask) -> str:
    """Return a task's status, state, agent health and message in one line."""
    status = f"status {row.status or '-'}, state {row.state or '-'}, agent {row.health or '-'}"
    return f"{row.scenario.job}: {status}, message: {row.message or '-'}"
