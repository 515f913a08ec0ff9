from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path

from taskherd.domain.reports import AgentState, Transition
from taskherd.runner.journal import Journal
from taskherd.runner.outbox import Budget, Outbox
from taskherd.runner.reporter import Reporter, SequenceGenerator

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
CEILING = 2_000_000_000_000_000
"""A seq above those of the clock, as an earlier runner has recorded it."""


def start(path: Path, journal: Journal) -> tuple[Reporter, Outbox]:
    """Return what a runner that has just begun reports with, whose journal is not written any more."""
    outbox = Outbox(path, Budget(2**30), lambda _: None)
    sequence = SequenceGenerator(journal, lambda: NOW, lambda: None, above=outbox.last_seq)
    start = Transition.START
    reporter = Reporter(journal, 1, transition=start, runner="r", outbox=outbox, sequence=sequence, now=lambda: NOW)
    return reporter, outbox


def test_no_seq_comes_twice_although_a_runner_dies_at_once(tmp_path: Path) -> None:
    """A runner that is killed before its journal is written has recorded reports; the next one goes on above them."""
    task_id, path = uuid.uuid4(), tmp_path / "outbox.jsonl"
    for state in (AgentState.WORKING, AgentState.IDLE, AgentState.COMPLETE):
        journal = Journal(task_id=task_id, task_name="t", seq_ceiling=CEILING)
        reporter, outbox = start(path, journal)
        for _ in range(3):
            reporter.status(state)
        outbox.close()
    seqs = [json.loads(report)["seq"] for report in Outbox(path, Budget(2**30), lambda _: None).peek(99, 2**20)]
    assert seqs == sorted(set(seqs))
    assert seqs[0] > CEILING
