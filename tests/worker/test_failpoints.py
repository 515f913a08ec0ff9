"""Which failpoints a worker reaches: those of a kind of message with one of that kind, and with no other."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from taskherd.observability import failpoints
from taskherd.observability.failpoints import Failpoint
from tests.harness.runner import eventually
from tests.harness.worker import WorkerHarness, make_report
from tests.worker.conftest import StartWorker
from tests.worker.test_agent_requests import answer, ask, close
from tests.worker.test_inbox import report_state
from tests.worker.test_interrupts import interrupt

OF_REQUESTS = {
    Failpoint.AGENT_REQUESTS_SAVED, Failpoint.ANSWER_COMMITTED, Failpoint.ANSWER_SEND, Failpoint.ANSWER_SENT
}  # fmt: skip
OF_INTERRUPTS = {Failpoint.INTERRUPT_SAVED, Failpoint.INTERRUPT_COMMITTED}


class Reached(list[Failpoint]):
    """The failpoints that were reached, in order."""

    def special(self) -> set[Failpoint]:
        """Return those of requests and interrupts that were reached, and forget all."""
        found = {*self} & (OF_REQUESTS | OF_INTERRUPTS)
        self.clear()
        return found


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Reached:
    """Return the failpoints that workers reach from now on."""
    reached = Reached()
    monkeypatch.setattr(failpoints, "failpoint_hook", lambda _: reached.append)
    return reached


@pytest.fixture
async def harness(reached: Reached, start_worker: StartWorker) -> AsyncIterator[WorkerHarness]:
    """Yield a harness with a worker whose failpoints are noted."""
    async with start_worker() as running:
        reached.clear()
        yield running


async def test_a_report_reaches_the_failpoints_of_its_batch_in_order(harness: WorkerHarness, reached: Reached) -> None:
    """It is received, written, about to be committed, committed, and acknowledged."""
    steps = [Failpoint.RECEIVE, Failpoint.WRITE, Failpoint.PRE_COMMIT, Failpoint.POST_COMMIT, Failpoint.POST_ACK]
    await harness.report(make_report("app.status", uuid.uuid4(), build_number=1, seq=1, state="idle", message="Parked"))
    await eventually(lambda: Failpoint.POST_ACK in reached, 30)
    assert [each for each in dict.fromkeys(reached) if each in steps] == steps


async def test_requests_of_agents_have_failpoints_of_their_own(harness: WorkerHarness, reached: Reached) -> None:
    """That a request was saved, also because it shows differently, and that its answer was committed and sent."""
    task_id = await harness.make_active()
    await report_state(harness, task_id, "working")
    assert (await harness.command("task.send", task_id, input="And then?"))["ok"]
    assert reached.special() == set()
    request_id = await ask(harness, task_id)
    assert reached.special() == {Failpoint.AGENT_REQUESTS_SAVED}
    await answer(harness, task_id, request_id, text="core")
    await harness.until(lambda: harness.requests_of(task_id, "agent.answer") and Failpoint.ANSWER_SENT in reached)
    order = [each for each in reached if each in OF_REQUESTS]
    assert order[:2] == [Failpoint.AGENT_REQUESTS_SAVED, Failpoint.ANSWER_COMMITTED]
    assert order[2:4] == [Failpoint.ANSWER_SEND, Failpoint.ANSWER_SENT]
    await close(harness, task_id, request_id, "answered", text="core")
    await ask(harness, task_id, "And now?", seq=3)
    reached.clear()
    await harness.report(make_report("agent.exit", task_id, build_number=1, why="exited", status=0))
    await harness.until(lambda: harness.document(task_id)["agent_exit"])
    assert reached.special() == {Failpoint.AGENT_REQUESTS_SAVED}


async def test_interrupts_have_failpoints_of_their_own(harness: WorkerHarness, reached: Reached) -> None:
    """That one has begun or ended was saved, also in a batch with another task, and that its command is committed."""
    task_id, other = await harness.make_active(), await harness.make_active()
    await report_state(harness, task_id, "working")
    reached.clear()
    interrupt_id = await interrupt(harness, task_id)
    await harness.until(lambda: harness.document(task_id)["interrupt"])
    assert reached.special() == OF_INTERRUPTS
    await harness.report(
        make_report("app.status", other, state="working", message=f"In {other}"),
        make_report("agent.interrupted", task_id, interrupt_id=interrupt_id, outcome="stopped"),
    )
    await harness.until(lambda: harness.document(task_id)["interrupt"] is None)
    assert reached.special() == {Failpoint.INTERRUPT_SAVED}
    await harness.report(make_report("app.status", task_id, state="idle", message=f"In {task_id}"))
    await harness.until(lambda: harness.state(task_id).get("message") == f"In {task_id}")
    assert (await harness.command("task.pause", uuid.uuid4()))["ok"] is False
    assert reached.special() == set()
