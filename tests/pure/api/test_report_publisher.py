"""Reports of agents on their way to the broker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.agents import report_publisher
from taskherd.api.agents.report_publisher import ReportPublisher
from taskherd.broker.publisher import Publisher, PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.domain.reports import AgentState, AppStatus
from taskherd.errors import Unavailable
from taskherd.messages.reports import encode_report, join_reports
from taskherd.observability.tracing import Tracing

TASK = UUID(int=7)
REPORT = AppStatus(
    task_id=TASK,
    build_number=1,
    seq=0,
    observed_at=datetime(2026, 3, 1, tzinfo=UTC),
    state=AgentState.IDLE,
    message="Done",
    uri="",
)


class Broker:
    """A publisher whose messages are confirmed when the test says so."""

    def __init__(self, outcome: PublishOutcome = PublishOutcome.CONFIRMED) -> None:
        self.confirmed = asyncio.Event()
        self.sent: list[tuple[str, str, bytes, dict[str, Any]]] = []
        self._outcome = outcome

    async def publish(self, exchange: str, routing_key: str, body: bytes, **options: Any) -> PublishOutcome:
        """Publish a message."""
        self.sent.append((exchange, routing_key, body, options))
        await self.confirmed.wait()
        return self._outcome


def publisher_to(broker: Broker) -> ReportPublisher:
    """Return what agents' reports are published with."""
    return ReportPublisher(cast("Publisher", broker), TopologyNames("p"), Tracing())


async def test_the_reports_of_a_request_are_one_message_of_its_task() -> None:
    """In an order that the worker numbers, and outside of any trace; it is refused if no queue gets it."""
    broker = Broker(PublishOutcome.UNROUTED)
    broker.confirmed.set()
    with pytest.raises(Unavailable, match=r"no queue is bound to exchange p\.reports"):
        await publisher_to(broker).publish(TASK, [REPORT, REPORT])
    ((exchange, routing_key, body, options),) = broker.sent
    assert (exchange, routing_key, options) == ("p.reports", str(TASK), {"headers": None, "mandatory": True})
    reports = orjson.loads(body)
    assert [(each["type"], each["state"], "seq" in each) for each in reports] == [("app.status", "idle", False)] * 2


async def test_a_thousand_messages_may_wait_for_their_confirms() -> None:
    """One more is refused at once, so that agents do not fill the memory; each that was confirmed makes room."""
    broker = Broker()
    publisher = publisher_to(broker)
    waiting = [asyncio.create_task(publisher.publish(TASK, [REPORT])) for _ in range(1_000)]
    await asyncio.sleep(0)
    assert len(broker.sent) == 1_000
    for _ in range(2):
        with pytest.raises(Unavailable, match="too many reports"):
            await publisher.publish(TASK, [REPORT])
    waiting.pop().cancel()
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(publisher.publish(TASK, [REPORT])))
    await asyncio.sleep(0)
    assert len(broker.sent) == 1_001
    broker.confirmed.set()
    await asyncio.gather(*waiting)
    await publisher.publish(TASK, [REPORT])
    assert len(broker.sent) == 1_002


async def test_the_bodies_that_wait_for_their_confirms_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that would be too much is refused at once, until others are confirmed."""
    size = len(join_reports([encode_report(REPORT, with_seq=False)]))
    monkeypatch.setattr(report_publisher, "MAX_UNCONFIRMED_BYTES", 2 * size)
    broker = Broker()
    publisher = publisher_to(broker)
    waiting = [asyncio.create_task(publisher.publish(TASK, [REPORT])) for _ in range(2)]
    await asyncio.sleep(0)
    assert [len(body) for _, _, body, _ in broker.sent] == [size] * 2
    with pytest.raises(Unavailable, match="too many reports"):
        await publisher.publish(TASK, [REPORT])
    waiting.pop().cancel()
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="too many reports"):
        await publisher.publish(TASK, [REPORT, REPORT])
    broker.confirmed.set()
    await publisher.publish(TASK, [REPORT])
    await asyncio.gather(*waiting)
