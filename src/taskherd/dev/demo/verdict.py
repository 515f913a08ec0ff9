"""What must be true in the end, each with whether it is; the demo's own test of itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never
from uuid import UUID

from taskherd.broker.dead import DeadLetter
from taskherd.dev.demo.acts import ENDED, LOST, Facts
from taskherd.dev.demo.board import Row
from taskherd.dev.demo.cast import Role

OFF = "agent is not running"
STAY = frozenset({Role.PLAIN, Role.FAILS, Role.EARLY, Role.GARBAGE})
"""Whose agents live until the demo ends."""
GARBAGE_REASONS = frozenset({"not_json", "invalid"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One expectation, whether it was met, and what was seen."""

    expected: str
    met: bool
    seen: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the verdict rests on."""

    rows: Mapping[UUID, Row]
    facts: Facts
    verdicts: Mapping[UUID, str | None]
    """How each agent's own log says that its work ended."""
    letters: Sequence[DeadLetter]


def judge(evidence: Evidence) -> list[Finding]:
    """What must be true when every act is over, in the order in which it is told."""
    rows = [*evidence.rows.values()]
    return [_created(rows, evidence.facts), *_each_role(rows, evidence)]


def are_off(rows: Iterable[Row]) -> bool:
    """Whether all agents that were there to the end are known to have left."""
    return all(row.health == OFF for row in rows if row.part.role in STAY)


def farewell(rows: Iterable[Row], stored: Mapping[UUID, int]) -> list[Finding]:
    """What must be true when the agents have left; `stored` is the version of each task in the database."""
    rows = [*rows]
    late = [_seen(row) for row in rows if row.part.role in STAY and row.health != OFF]
    left = Finding(f"agents that said goodbye show as “{OFF}”", not late, "; ".join(late) or "all of them")
    return [left, _agree(rows, stored)]


def _each_role(rows: Sequence[Row], evidence: Evidence) -> Iterator[Finding]:
    yield _worked([row for row in rows if row.part.role is Role.PLAIN], evidence)
    for row in rows:
        match row.part.role:
            case Role.PLAIN:
                continue
            case Role.FAILS:
                yield _failed(row)
            case Role.KILLED:
                yield _lost(row, evidence.facts)
            case Role.DELETED:
                yield _deleted(row, evidence.facts)
            case Role.EARLY:
                yield _early(row, evidence)
            case Role.GARBAGE:
                yield _buried(row, evidence)
            case Role.PAUSED:
                yield _paused(row, evidence.facts)
            case _:
                assert_never(row.part.role)


def _created(rows: Sequence[Row], facts: Facts) -> Finding:
    accepted = [row for row in rows if facts.replies.get(row.part.job, {}).get("ok")]
    refusals = [str(reply["error"]["message"]) for reply in facts.replies.values() if not reply["ok"]]
    seen = f"{len(accepted)} of {len(rows)}" + "".join(f"; {refusal}" for refusal in refusals[:3])
    return Finding("every task.create is answered with the task", len(accepted) == len(rows), seen)


def _worked(rows: Sequence[Row], evidence: Evidence) -> Finding:
    """A check that found something in the source fails, and is shown so: what counts is that both say the same."""
    wrong = [row for row in rows if not _ended_well(row, evidence.verdicts[row.part.task_id])]
    ends = ", ".join(f"{row.part.job} {row.state}" for row in rows)
    seen = ends if not wrong else "; ".join(_seen(row) for row in wrong)
    return Finding("agents that just work end as they say, alive and healthy", not wrong, seen)


def _ended_well(row: Row, verdict: str | None) -> bool:
    return row.state in ENDED and row.state == verdict and row.status == "active" and row.health == "healthy"


def _failed(row: Row) -> Finding:
    met = row.state == "failed" and "SyntaxError" in row.message and row.status == "active"
    return Finding("a check of a file with a mistake in it fails, with the compiler's words", met, _seen(row))


def _lost(row: Row, facts: Facts) -> Finding:
    after = "" if facts.lost_after is None else f", {facts.lost_after:.1f} s after the kill"
    met = row.health == LOST and row.status == "active" and facts.lost_after is not None
    return Finding(f"the agent killed with -9 shows as “{LOST}”", met, f"{row.health or 'nothing'}{after}")


def _deleted(row: Row, facts: Facts) -> Finding:
    accepted = bool(facts.delete_reply.get("ok"))
    met = accepted and row.deleted and facts.gone_after_delete
    agent = "its agent has ended" if facts.gone_after_delete else "its agent still runs"
    return Finding("the task deleted while it worked is gone, and its agent too", met, f"v{row.version}, {agent}")


def _early(row: Row, evidence: Evidence) -> Finding:
    created = evidence.facts.replies.get(row.part.job, {}).get("task") or {}
    state = (created.get("current_state") or {}).get("message", "")
    met = evidence.facts.parked > 0 and created.get("status") == "active" and bool(state)
    met = met and _ended_well(row, evidence.verdicts[row.part.task_id])
    seen = f"{evidence.facts.parked} parked; created as {created.get('status')} with “{state}”"
    return Finding("reports from before the create are in the task as it is created", met, seen)


def _buried(row: Row, evidence: Evidence) -> Finding:
    reasons = {letter.reason for letter in evidence.letters if letter.origin.routing_key == str(row.part.task_id)}
    met = reasons == GARBAGE_REASONS and _ended_well(row, evidence.verdicts[row.part.task_id])
    seen = f"{', '.join(sorted(reasons)) or 'no dead letter'}; the task is {row.state}"
    return Finding("garbage is in the dead letters with its reason, and its sender's task goes on", met, seen)


def _paused(row: Row, facts: Facts) -> Finding:
    met = bool(facts.pause_reply.get("ok")) and row.status == "paused" and row.state == "complete"
    return Finding("the task paused when it was done is paused, with what it said last", met, _seen(row))


def _agree(rows: Sequence[Row], stored: Mapping[UUID, int]) -> Finding:
    """The events' reader must have seen each task's last version."""
    apart = [row.name for row in rows if stored.get(row.part.task_id) != row.version]
    seen = f"differ: {', '.join(apart)}" if apart else f"{len(rows)} tasks, the same versions"
    return Finding("events and database agree on every task", not apart, seen)


def _seen(row: Row) -> str:
    return f"{row.part.job} is {row.status or 'nowhere'}, {row.state or 'silent'}: {row.message} ({row.health or '-'})"
