"""A follower's context whose reports stay in its outbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from taskherd.domain.reports import Transition
from taskherd.observability.metrics import Metrics
from taskherd.runner import template
from taskherd.runner.activity import ProcessMonitor
from taskherd.runner.agents.context import AgentContext
from taskherd.runner.agents.log_budget import LogBudget, LogRates
from taskherd.runner.journal import Journal
from taskherd.runner.listeners import Peer
from taskherd.runner.outbox import Budget, Outbox
from taskherd.runner.reporter import Reporter, SequenceGenerator
from taskherd.runner.workspaces.folders import RunFolder
from tests.pure.messages.samples import NOW


class Spending(LogBudget):
    """A budget that remembers what was spent."""

    def __init__(self) -> None:
        super().__init__(LogRates(1_000, 1_000))
        self.spent: list[tuple[int, int]] = []

    def spend(self, entries: int, size: int) -> None:
        """Note it."""
        self.spent.append((entries, size))


def make_context(folder: Path, *, outbox: Outbox | None = None, **run: Any) -> AgentContext:
    """Return the context of build 1 in this folder; ``run`` are fields of its template."""
    journal = Journal(task_id=UUID(int=6), task_name="a", port=1)
    if outbox is None:  # an empty one is false
        outbox = Outbox(folder / "outbox.jsonl", Budget(10**9), lambda _: None)
    sequence = SequenceGenerator(journal, lambda: NOW, lambda: None, above=outbox.last_seq)
    start = Transition.START
    return AgentContext(
        run=template.parse({"command": ["a"], **run}),
        journal=journal,
        folder=RunFolder(folder),
        reporter=Reporter(journal, 1, transition=start, runner="r", outbox=outbox, sequence=sequence, now=lambda: NOW),
        outbox=outbox,
        metrics=Metrics(),
        save=_save_nothing,
        deliver_once=_deliver_nothing,
        processes=ProcessMonitor(),
        log_budget=LogBudget(LogRates(10**9, 10**9)),
        work=folder,
        workdir=folder,
        start_command=lambda *_: pytest.fail("no command is run"),
        identify_peer=has_only_the_agent,
    )


def reports_of(outbox: Outbox, kind: str = "") -> list[dict[str, Any]]:
    """Return the reports in an outbox, those of this type if one is given."""
    reports = [json.loads(report) for report in outbox.peek(10**6, 10**9)]
    return [report for report in reports if kind in {"", report["type"]}]


async def _save_nothing() -> None:
    pass


async def _deliver_nothing(_input_id: UUID, _text: str) -> str | None:
    return None


async def has_only_the_agent(_own_port: int) -> Peer:
    """Say that the other end of a connection is the agent's."""
    return Peer.AGENT
