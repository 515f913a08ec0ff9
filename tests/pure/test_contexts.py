"""How the loops of a worker retry what fails, and what they count of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskherd import retry
from taskherd.backoff import Backoff
from taskherd.errors import Retry, Unavailable
from taskherd.observability.metrics import Metrics
from tests.harness.contexts import partial_context


class Work:
    """Work that fails with these errors first, in a context that notes what it is told."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.metrics, self.stopping = Metrics(), asyncio.Event()
        self.told: list[str] = []
        self.context = partial_context(metrics=self.metrics, stopping=self.stopping, on_error=self.told.append)

    async def __call__(self) -> str:
        """Fail, or succeed."""
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def run(self) -> str:
        """Work until it succeeds."""
        return await self.context.until_stopped(self, "database")

    @property
    def failures(self) -> Any:
        """The number of failures that were counted."""
        return self.metrics.registry.get_sample_value("taskherd_batch_failures_total", {"reason": "database"}) or 0


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "OUTAGE", Backoff(0, 0))
    monkeypatch.setattr(retry, "MAX_CONFLICTS", 2)


async def test_an_outage_is_waited_out() -> None:
    """Each failure is told and counted."""
    work = Work(Unavailable("away"), Unavailable("still away"))
    assert await work.run() == "done"
    assert (work.told, work.failures) == (["away", "still away"], 2)


async def test_some_conflicts_are_usual() -> None:
    """They are neither told nor counted."""
    work = Work(Retry("a conflict"), Retry("a conflict"))
    assert await work.run() == "done"
    assert (work.told, work.failures) == ([], 0)


async def test_conflicts_that_do_not_end_count_as_an_outage() -> None:
    """And are waited out like one."""
    work = Work(*[Retry("a conflict")] * 7)
    assert await work.run() == "done"
    assert (work.told, work.failures) == (["a conflict"] * 2, 2)


@pytest.mark.parametrize(("errors", "left"), [([Unavailable("away")] * 5, 4), ([Retry("a conflict")] * 5, 2)])
async def test_a_worker_that_stops_gives_up(errors: list[Exception], left: int) -> None:
    """After a failure, or as many conflicts as are usual."""
    work = Work(*errors)
    work.stopping.set()
    with pytest.raises(Unavailable, match=str(errors[0])):
        await work.run()
    assert len(work.errors) == left
