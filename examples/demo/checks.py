"""What must be true in the end, each with whether it is; the demo's own test of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from examples.demo.runner import ENDED, NEW_PROMPT, QUESTIONS, Observations
from examples.demo.scenarios import Role
from examples.demo.task_table import DemoTask
from taskherd.messages.dead_letters import DeadLetter

GARBAGE_REASONS = frozenset({"not_json", "invalid"})


@dataclass(frozen=True, slots=True)
class Expectation:
    """One expectation, whether it was met, and what was seen."""

    expected: str
    met: bool
    actual: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the verdict rests on."""

    rows: Mapping[str, DemoTask]
    facts: Observations
    dead_letters: Sequence[DeadLetter] = ()
    verdicts: Mapping[str, str | None] = field(default_factory=dict)
    """How each agent's work ended in its own words, by job: what it wrote in its folder."""
    done: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The steps that it noted there."""
    conversation: Sequence[Mapping[str, Any]] = ()
    """With the agent that was driven by what was sent to it, as the API tells it."""
    repaired: str = ""
    """What the tests in the mended repository say, run by us; empty unless they pass."""


def check(evidence: Evidence) -> list[Expectation]:
    """What must be true when every act is over, in the order in which it is told."""
    rows = [*evidence.rows.values()]
    return [_created(rows, evidence.facts), *_each_role(rows, evidence), _adopted(evidence.facts)]


def check_shutdown(
    rows: Iterable[DemoTask], stored: Mapping[UUID, int], told: Mapping[str, Mapping[str, Any]], left: Sequence[int]
) -> list[Expectation]:
    """What must be true when all are paused: `stored` versions, the documents `told` by the API, processes `left`."""
    rows = [*rows]
    late = [_seen(row) for row in rows if not row.deleted and row.status != "paused"]
    gone = Expectation("every task that is left is paused", not late, "; ".join(late) or "all of them")
    looked = all(row.task_id is not None for row in rows)
    agents = Expectation("no agent's process is left", looked and not left, f"left: {left}" if left else "none")
    return [gone, agents, _agree(rows, stored, told)]


def _each_role(rows: Sequence[DemoTask], evidence: Evidence) -> Iterator[Expectation]:
    yield _worked([row for row in rows if row.scenario.role is Role.PLAIN], evidence)
    yield from (_OF_ROLE[row.scenario.role](row, evidence) for row in rows if row.scenario.role is not Role.PLAIN)


def _created(rows: Sequence[DemoTask], facts: Observations) -> Expectation:
    met = all(row.scenario.job in facts.created for row in rows)
    return Expectation("every task is created over HTTP", met, f"{len(facts.created)} of {len(rows)}")


def _worked(rows: Sequence[DemoTask], evidence: Evidence) -> Expectation:
    """A check that found something in the source fails, and is shown so: what counts is that both say the same."""
    wrong = [row for row in rows if not _ended_as_reported(row, evidence)]
    ends = ", ".join(f"{row.scenario.job} {row.state}" for row in rows)
    seen = ends if not wrong else "; ".join(_seen(row) for row in wrong)
    return Expectation("agents that just work end as they say", not wrong, seen)


def _ended_as_reported(row: DemoTask, evidence: Evidence) -> bool:
    """An agent that failed leaves a task in error, one that did not an active one."""
    status = "active" if row.state == "complete" else "error"
    return row.state in ENDED and row.state == evidence.verdicts.get(row.scenario.job) and row.status == status


def _failed(row: DemoTask, evidence: Evidence) -> Expectation:
    met = _ended_as_reported(row, evidence) and row.state == "failed" and "SyntaxError" in row.message
    return Expectation("a check of a file with a mistake in it fails, with the compiler's words", met, _seen(row))


def _fixed(row: DemoTask, evidence: Evidence) -> Expectation:
    met = row.state == "complete" and row.status == "active" and bool(evidence.repaired)
    return Expectation(
        "the bug is mended and committed, and the tests pass", met, f"{row.message} | {evidence.repaired}"
    )


def _inputs_delivered(row: DemoTask, evidence: Evidence) -> Expectation:
    """Each input is in the conversation once, in order, and each but the last is followed by its answer."""
    said = [(each["type"], each["content"]) for each in evidence.conversation]
    asked = [content for kind, content in said if kind == "input"][1:]  # the first is the prompt
    answered = [content.partition(":")[0] for kind, content in said if kind == "output"]
    met = asked == [*QUESTIONS] and answered == [*QUESTIONS[:-1]] and row.state == "complete"
    seen = f"{evidence.facts.queued} waited in the inbox; {'; '.join(content for _, content in said[1:])}"
    return Expectation("what was sent is answered, in order, and ends the task", met, seen)


def _resumed(row: DemoTask, evidence: Evidence) -> Expectation:
    before, done = evidence.facts.done_before_resume, evidence.done.get(row.scenario.job, ())
    met = (
        "paused" in row.statuses
        and evidence.facts.processes.get(row.scenario.job) == 0
        and _ended_as_reported(row, evidence)
    )
    met = met and 0 < len(before) < len(done) == len(set(done)) and [*done[: len(before)]] == before
    met = met and row.document.get("initial_prompt") == NEW_PROMPT
    seen = (
        f"{len(before)} steps before, {len(done) - len(before)} after, none twice; {row.document.get('initial_prompt')}"
    )
    return Expectation("the task that was paused has gone on where it was, with its new prompt", met, seen)


def _crashed(row: DemoTask, _evidence: Evidence) -> Expectation:
    met = row.state == "failed" and "SIGSEGV" in row.message and row.status == "error"
    return Expectation("the agent that crashed has failed, with its signal", met, _seen(row))


def _timed_out(row: DemoTask, evidence: Evidence) -> Expectation:
    met = (
        row.state == "failed"
        and "used up its time" in row.message
        and evidence.facts.processes.get(row.scenario.job) == 0
    )
    return Expectation(
        "the agent that hung was stopped when its time was over", met and row.status == "error", _seen(row)
    )


def _deleted(row: DemoTask, evidence: Evidence) -> Expectation:
    facts = evidence.facts
    met = row.deleted and facts.folder_gone and facts.processes.get(row.scenario.job) == 0
    agent = "neither folder nor process is left" if met else "something is left of it"
    return Expectation(
        "the task deleted while it worked is gone, and all of its agent", met, f"v{row.version}, {agent}"
    )


def _self_reported(row: DemoTask, evidence: Evidence) -> Expectation:
    met = _ended_as_reported(row, evidence) and row.worked > 1
    return Expectation("the agent that reports for itself shows as it said", met, _seen(row))


def _dead_lettered(row: DemoTask, evidence: Evidence) -> Expectation:
    reasons = {letter.reason for letter in evidence.dead_letters if letter.origin.routing_key == str(row.task_id)}
    met = reasons == GARBAGE_REASONS and _ended_as_reported(row, evidence)
    seen = f"{', '.join(sorted(reasons)) or 'no dead letter'}; the task is {row.state}"
    return Expectation("garbage is in the dead letters with its reason, and the task it was about goes on", met, seen)


_OF_ROLE: Final[Mapping[Role, Callable[[DemoTask, Evidence], Expectation]]] = {
    Role.FAILS: _failed,
    Role.FIXES: _fixed,
    Role.SENT: _inputs_delivered,
    Role.PAUSED: _resumed,
    Role.CRASHES: _crashed,
    Role.HANGS: _timed_out,
    Role.DELETED: _deleted,
    Role.SELF_REPORTING: _self_reported,
    Role.GARBAGE: _dead_lettered,
}


def _adopted(facts: Observations) -> Expectation:
    lived_on = facts.alive_before & facts.alive_after  # others may have begun meanwhile
    met = facts.adopted > 0 and bool(lived_on) and lived_on == facts.alive_before
    seen = f"{facts.adopted} adopted; {len(lived_on)} of {len(facts.alive_before)} processes lived on"
    return Expectation("the runner killed with -9 took no agent with it, and the next one went on with them", met, seen)


def _agree(rows: Sequence[DemoTask], stored: Mapping[UUID, int], told: Mapping[str, Mapping[str, Any]]) -> Expectation:
    """The events' reader must have seen each task's last version, and the API must say the same."""
    apart = [row.scenario.name for row in rows if row.task_id is None or stored.get(row.task_id) != row.version]
    apart += [
        row.scenario.name
        for row in rows
        if not row.deleted and not _same(row.document, told.get(row.scenario.name, {}))
    ]
    seen = f"differ: {', '.join(apart)}" if apart else f"{len(rows)} tasks, the same in all three"
    return Expectation("events, database and API agree on every task", bool(rows) and not apart, seen)


def _same(event: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    names = ("id", "status", "current_state", "workspace_build_number", "updated_at")
    return bool(told) and all(event.get(name) == told.get(name) for name in names)


def _seen(row: DemoTask) -> str:
    return (
        f"{row.scenario.job} is {row.status or 'nowhere'}, {row.state or 'silent'}: {row.message} ({row.health or '-'})"
    )
