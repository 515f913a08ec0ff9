"""The state diagram in the documentation is generated from the tables of the view."""

from pathlib import Path

from taskherd.domain import diagram
from taskherd.domain.reports import Health, JobStatus, Lifecycle, Transition

PAGE = Path(__file__).parents[3] / "docs" / "state-diagram.md"


def test_the_page_is_up_to_date() -> None:
    """``docs/state-diagram.md`` is the output of ``python -m taskherd.domain.diagram``."""
    assert PAGE.read_text(encoding="utf-8") == diagram.render()


def test_the_rows_are_complete() -> None:
    """Every pair of transition and job, every lifecycle, no agent, and every app health has a row."""
    assert len(diagram.build_rows()) == len(Transition) * len(JobStatus)
    assert len(diagram.agent_rows()) == 1 + len(Lifecycle)
    assert len(diagram.app_rows()) == len(Health)
