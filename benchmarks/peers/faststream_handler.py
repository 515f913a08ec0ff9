"""The same job as a FastStream handler: one SQLAlchemy transaction per report, and an event if the task changed."""

import asyncio
import os
from datetime import datetime
from typing import Literal
from uuid import UUID, uuid4

import uvloop
from faststream import FastStream
from faststream.rabbit import Channel, ExchangeType, QueueType, RabbitBroker, RabbitExchange, RabbitQueue
from pydantic import BaseModel
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from benchmarks.harness import meter
from benchmarks.peers.schema import events, tasks

CONCURRENCY = 20
"""Maximum number of concurrent handlers, each with a database connection; more do not help."""

done = published = 0


class Report(BaseModel):
    """The two types of reports that this handler accepts."""

    type: Literal["agent.heartbeat", "app.status"]
    task_id: UUID
    build_number: int
    seq: int
    observed_at: datetime
    agent_id: UUID
    state: str | None = None
    message: str = ""
    uri: str = ""


engine = create_async_engine(os.environ["BENCH_SQLALCHEMY_URL"], pool_size=CONCURRENCY)
session_of = async_sessionmaker(engine, expire_on_commit=False)
broker = RabbitBroker(os.environ["BENCH_AMQP_URL"], default_channel=Channel(prefetch_count=CONCURRENCY), logger=None)
app = FastStream(broker, logger=None)
queue = RabbitQueue(os.environ["BENCH_QUEUE"], queue_type=QueueType.QUORUM, durable=True, declare=False)
exchange = RabbitExchange(os.environ["BENCH_EVENTS"], type=ExchangeType.TOPIC, durable=True, declare=False)


@broker.subscriber(queue)
async def handle(report: Report) -> None:
    """Lock the task, apply the report, insert the change, commit, then publish."""
    global done, published  # noqa: PLW0603 - as the documentation's examples are written
    async with session_of.begin() as session:
        task = (await session.execute(select(tasks).where(tasks.c.id == report.task_id).with_for_update())).one()
        event = None
        if report.type == "agent.heartbeat":
            changed = {"heartbeat_seq": report.seq, "heard_at": func.now()}
        elif report.seq <= task.status_seq:
            changed = {}
        else:
            changed = {
                "version": task.version + 1,
                "updated_at": func.now(),
                "status_seq": report.seq,
                "state": report.state,
                "state_message": report.message,
                "state_uri": report.uri,
                "state_at": func.now(),
            }
            document = {**task._mapping, **changed}  # noqa: SLF001 - the documented way to a row's mapping
            values = {name: str(value) for name, value in document.items() if not name.endswith("_at")}
            event = {"id": str(uuid4()), "version": task.version + 1, "task": values}
        if changed:
            await session.execute(update(tasks).where(tasks.c.id == report.task_id).values(changed))
        if event:
            row = {"task_id": report.task_id, "version": event["version"], "document": event["task"]}
            await session.execute(insert(events).values(row))
    if event:
        await broker.publish(event, exchange=exchange, routing_key="task.updated", persist=True, mandatory=False)
        published += 1
    done += 1


if __name__ == "__main__":
    meter.watch(lambda: (done, published))
    uvloop.run(app.run())
    asyncio.run(engine.dispose())
