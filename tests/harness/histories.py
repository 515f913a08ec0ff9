"""Histories of reports as nasty as the contract allows, for the laws on the pure fold and through a real database.

They are short of values on purpose: few build numbers, seqs, agents and texts, so that reports clash, repeat and
displace each other all the time. Some are floods that name more builds than a task remembers.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hypothesis import strategies as st

from taskherd.domain.reports import (
    AgentDisconnected,
    AgentHeartbeat,
    AgentLifecycle,
    AgentState,
    App,
    AppHealth,
    AppStatus,
    Health,
    JobStatus,
    Lifecycle,
    Transition,
    Workspace,
    WorkspaceBuild,
    canonical_json,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.domain.reports import Report

TASK = UUID(int=7)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
AGENTS = (UUID(int=0xA1), UUID(int=0xA2), UUID(int=0xA3))
BUILDS = (1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 18)
MAX_FLOOD = 24
"""The highest build number of a flood, past the 16 that a task remembers."""

JOBS = (*JobStatus, *[JobStatus.RUNNING] * 2, *[JobStatus.SUCCEEDED] * 5)
TRANSITIONS = (*Transition, *[Transition.START] * 6)
LIFECYCLES = (*Lifecycle, *[Lifecycle.READY] * 6)


def report(dice: Random, task_id: UUID = TASK, build_number: int | None = None) -> Report:
    """Any report that the fold takes into a facet, of this build or any; its build number and seq are given."""
    common: dict[str, Any] = {
        "task_id": task_id,
        "build_number": build_number or dice.choice(BUILDS),
        "seq": dice.choice((0, 1, 2, 3)),
        "observed_at": dice.choice((None, None, NOON, NOON - timedelta(seconds=1))),
        "agent_id": dice.choice((None, *AGENTS)),
    }
    match dice.randrange(8):
        case 0 | 1 | 2:
            return _build(dice, common)
        case 3:
            return AgentLifecycle(**common, lifecycle=dice.choice(LIFECYCLES))
        case 4:
            return AgentHeartbeat(**common)
        case 5:
            return AgentDisconnected(**common)
        case 6:
            return AppHealth(**common, health=dice.choice((*Health, Health.HEALTHY)))
        case _:
            message, uri = dice.choice(("", "a", "é", "Z")), dice.choice(("", "https://example.com/1"))
            return AppStatus(**common, state=dice.choice(tuple(AgentState)), message=message, uri=uri)


def _build(dice: Random, common: dict[str, Any]) -> WorkspaceBuild:
    app = App(
        UUID(int=dice.choice((0xB1, 0xB2))),
        dice.choice(("web", "chat")),
        dice.choice((None, "http://localhost:1")),
        dice.choice((None, *Health)),
    )
    return WorkspaceBuild(
        **common,
        transition=dice.choice(TRANSITIONS),
        job_status=dice.choice(JOBS),
        workspace=dice.choice((None, Workspace(UUID(int=0xC1), "one"), Workspace(UUID(int=0xC2), "two"))),
        app=dice.choice((None, app)),
        runner=dice.choice((None, "r1", "r2")),
        error=dice.choice((None, "it broke", "it broke again")),
    )


def flood(dice: Random, task_id: UUID = TASK) -> list[Report]:
    """Agents of more builds than a task remembers, each heard or at least seen."""
    told: list[Report] = []
    for number in range(1, MAX_FLOOD):
        common: dict[str, Any] = {"task_id": task_id, "build_number": number, "seq": dice.choice((0, 1))}
        if dice.random() < 0.9:
            told.append(AgentHeartbeat(**common))
        if dice.random() < 0.5:
            told.append(AgentLifecycle(**common, lifecycle=dice.choice(LIFECYCLES)))
    return told


def history(dice: Random, task_id: UUID = TASK, most: int = 40) -> list[Report]:
    """One history: some reports, often those of few builds, sometimes in the middle of a flood."""
    size = dice.randrange(1, most)
    only = dice.choice((None, None, 1, 2))
    told = [report(dice, task_id, only) for _ in range(size)]
    if dice.random() < 0.25:
        told += flood(dice, task_id)
    return told


def corpus(size: int, seed: int = 1) -> list[list[Report]]:
    """So many histories, the same ones each time."""
    dice = Random(seed)
    return [history(dice) for _ in range(size)]


def delivered(dice: Random, told: Sequence[Report]) -> list[list[Report]]:
    """The history as a broker may hand it over: in any order, parts of it more than once, cut into batches."""
    order = [*told, *(dice.choice(told) for _ in range(dice.randrange(1 + len(told) // 2)))]
    dice.shuffle(order)
    batches: list[list[Report]] = []
    while order:
        size = dice.randrange(1, 1 + len(order))
        batches.append(order[:size])
        order = order[size:]
    return batches


def dice() -> st.SearchStrategy[Random]:
    """A source of choices that Hypothesis records and shrinks."""
    return st.randoms(use_true_random=False)


def reports(task_id: UUID = TASK) -> st.SearchStrategy[Report]:
    """Any single report."""
    return dice().map(lambda source: report(source, task_id))


def histories(task_id: UUID = TASK, most: int = 30) -> st.SearchStrategy[list[Report]]:
    """Lists of reports, with a flood or without."""
    plain = st.lists(reports(task_id), min_size=1, max_size=most)
    floods = dice().map(lambda source: flood(source, task_id))
    return st.one_of(plain, plain, st.tuples(plain, floods).map(lambda both: both[0] + both[1]))


def body(told: Report) -> dict[str, Any]:
    """The report as a producer sends it, a JSON object of the contract."""
    said: dict[str, Any] = json.loads(canonical_json(told))
    return said
