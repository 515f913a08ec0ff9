"""What the benchmark of lists says about plans is what PostgreSQL has printed."""

from __future__ import annotations

from benchmarks.cases.lists import SINGLE, scans_of
from taskherd.api.tasks.search import TERMS

PLAN = """\
Nested Loop (actual rows=16.00 loops=1)
  ->  Seq Scan on memberships a (actual rows=1.00 loops=1)
  ->  Index Scan using task_totals_pkey on task_totals k (actual rows=10.00 loops=1)
        Index Cond: (waiting = true)
  ->  Index Only Scan Backward using task_index_template_created_idx on task_index i (actual rows=1.60 loops=1000)
        ->  Index Only Scan using task_index_changes_pkey on task_index_changes (never executed)
  ->  Seq Scan on task_index_changes c (actual rows=0.00 loops=1)
  ->  Index Only Scan using task_index_template_created_idx on task_index i_1 (actual rows=1.60 loops=34)
"""


def test_the_scans_of_a_plan_are_added_up() -> None:
    """Each index is named once, with how often it was scanned; a scan that was never executed is none."""
    assert scans_of(PLAN) == "`task_totals_pkey` 1, `task_index_template_created_idx` 1,034, `task_index_changes` 1"


def test_every_filter_is_measured_alone() -> None:
    """A term of ``q`` that is new gets a figure."""
    assert set(TERMS) <= {query.partition(":")[0] for query in SINGLE}
