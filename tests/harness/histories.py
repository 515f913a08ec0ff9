"""Random histories of reports, for the laws about the fold: on pure code and through a real database.

They draw from few build numbers, seqs, agents and texts, so that reports often conflict, repeat and supersede each
other. Some contain floods, which name more builds than a task state keeps.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hypothesis import strategies as st

from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import (
    AgentDisconnected,
    AgentExit,
    AgentHeartbeat,
    AgentLifecycle,
    AgentState,
    App,
    AppHealth,
    AppStatus,
    ExitReason,
    Health,
    JobStatus,
    Lifecycle,
    Transition,
    Workspace,
    WorkspaceBuild,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.domain.reports import Report

TASK = UUID(int=7)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
AGENTS = (UUID(int=0xA1), UUID(int=0xA2), UUID(int=0xA3))
BUILDS = (1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 18)
MAX_FLOOD = 24
"""Upper bound of the build numbers of a flood, more than the 16 that a task state keeps."""

JOBS = (*JobStatus, *[JobStatus.RUNNING] * 2, *[JobStatus.SUCCEEDED] * 5)
TRANSITIONS = (*Transition, *[Transition.START] * 6)
LIFECYCLES = (*Lifecycle, *[Lifecycle.READY] * 6)


def report(rng: Random, task_id: UUID = TASK, build_number: int | None = None) -> Report:  # noqa: PLR0911 - one return for each facet
    """Return a random report that concerns a facet, with a build number and seq; of ``build_number``, or of any."""
    common: dict[str, Any] = {
        "task_id": task_id,
        "build_number": build_number or rng.choice(BUILDS),
        "seq": rng.choice((0, 1, 2, 3)),
        "observed_at": rng.choice((None, None, NOON, NOON - timedelta(seconds=1))),
        "agent_id": rng.choice((None, *AGENTS)),
    }
    match rng.randrange(9):
        case 0 | 1 | 2:
            return _build(rng, common)
        case 3:
            return AgentLifecycle(**common, lifecycle=rng.choice(LIFECYCLES))
        case 4:
            return AgentHeartbeat(**common)
        case 5:
            return AgentDisconnected(**common)
        case 6:
            return _exit(rng, common)
        case 7:
            return AppHealth(**common, health=rng.choice((*Health, Health.HEALTHY)))
        case _:
            message, uri = rng.choice(("", "a", "é", "Z")), rng.choice(("", "https://example.com/1"))
            guessed_from = rng.choice(("", "its output"))
            return AppStatus(
                **common, state=rng.choice(tuple(AgentState)), message=message, uri=uri, guessed_from=guessed_from
            )


def _exit(rng: Random, common: dict[str, Any]) -> AgentExit:
    status, signal = rng.choice(((0, None), (3, None), (None, 9), (None, None)))
    words = rng.choice((None, "the end"))
    return AgentExit(**common, why=rng.choice(tuple(ExitReason)), status=status, signal=signal, words=words)


def _build(rng: Random, common: dict[str, Any]) -> WorkspaceBuild:
    app = App(
        UUID(int=rng.choice((0xB1, 0xB2))),
        rng.choice(("web", "chat")),
        rng.choice((None, "http://localhost:1")),
        rng.choice((None, *Health)),
    )
    return WorkspaceBuild(
        **common,
        transition=rng.choice(TRANSITIONS),
        job_status=rng.choice(JOBS),
        workspace=rng.choice((None, Workspace(UUID(int=0xC1), "one"), Workspace(UUID(int=0xC2), "two"))),
        app=rng.choice((None, app)),
        runner=rng.choice((None, "r1", "r2")),
        error=rng.choice((None, "it broke", "it broke again")),
        reason=rng.choice((None, "the machine is drained")),
    )


def flood(rng: Random, task_id: UUID = TASK) -> list[Report]:
    """Return heartbeats and lifecycle reports of more builds than a task state keeps."""
    reports: list[Report] = []
    for number in range(1, MAX_FLOOD):
        common: dict[str, Any] = {"task_id": task_id, "build_number": number, "seq": rng.choice((0, 1))}
        if rng.random() < 0.9:
            reports.append(AgentHeartbeat(**common))
        if rng.random() < 0.5:
            reports.append(AgentLifecycle(**common, lifecycle=rng.choice(LIFECYCLES)))
    return reports


def history(rng: Random, task_id: UUID = TASK, max_size: int = 40) -> list[Report]:
    """Return up to ``max_size`` random reports, often of one build only, sometimes followed by a flood."""
    size = rng.randrange(1, max_size)
    build_number = rng.choice((None, None, 1, 2))
    reports = [report(rng, task_id, build_number) for _ in range(size)]
    if rng.random() < 0.25:
        reports += flood(rng, task_id)
    return reports


def corpus(size: int, seed: int = 1) -> list[list[Report]]:
    """Return ``size`` histories, the same ones for the same seed."""
    rng = Random(seed)
    return [history(rng) for _ in range(size)]


def shuffled_batches(rng: Random, reports: Sequence[Report]) -> list[list[Report]]:
    """Return the reports as a broker may deliver them: in any order, some of them repeated, split into batches."""
    order = [*reports, *(rng.choice(reports) for _ in range(rng.randrange(1 + len(reports) // 2)))]
    rng.shuffle(order)
    batches: list[list[Report]] = []
    while order:
        size = rng.randrange(1, 1 + len(order))
        batches.append(order[:size])
        order = order[size:]
    return batches


def randoms() -> st.SearchStrategy[Random]:
    """Return a strategy for random generators whose choices Hypothesis records and shrinks."""
    return st.randoms(use_true_random=False)


def reports(task_id: UUID = TASK) -> st.SearchStrategy[Report]:
    """Return a strategy for single reports."""
    return randoms().map(lambda rng: report(rng, task_id))


def histories(task_id: UUID = TASK, most: int = 30) -> st.SearchStrategy[list[Report]]:
    """Return a strategy for lists of reports, with or without a flood."""
    lists = st.lists(reports(task_id), min_size=1, max_size=most)
    floods = randoms().map(lambda rng: flood(rng, task_id))
    return st.one_of(lists, lists, st.tuples(lists, floods).map(lambda both: both[0] + both[1]))


def report_fields(report: Report) -> dict[str, Any]:
    """Return the report as a producer sends it: a JSON object of the contract."""
    fields: dict[str, Any] = json.loads(canonical_json(report))
    return fields
