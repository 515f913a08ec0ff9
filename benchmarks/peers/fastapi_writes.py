"""A POST of a task in FastAPI with SQLAlchemy's ORM and one confirmed aio-pika publish, as a user would write it.

The handler inserts the task, commits, publishes an event to a durable quorum queue, waits for the confirm, and returns
the task.
"""

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import aio_pika
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import select

from benchmarks.peers.fastapi_orm import LOADED, CallerDep, SessionDep, Task, TaskOut, Template

QUEUE = "bench.peer.events"


class CreateTask(BaseModel):
    """The body of a POST."""

    template_version_id: uuid.UUID
    input: str


@asynccontextmanager
async def lifespan(application: FastAPI) -> AsyncIterator[None]:
    """Keep one connection to RabbitMQ, with publisher confirms."""
    connection = await aio_pika.connect_robust(os.environ["BENCH_AMQP_URL"])
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum", "x-max-length": 10_000})
        application.state.exchange = channel.default_exchange
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/api/v2/tasks/{user}", status_code=201, response_model=TaskOut)
async def create_task(user: str, body: CreateTask, session: SessionDep, caller: CallerDep) -> Task:
    """Create a task of the caller."""
    template = await session.scalar(select(Template))
    if template is None or user != "me":
        raise HTTPException(404)
    now = datetime.now(UTC)
    name = f"task-{uuid.uuid4().hex[:12]}"
    task = Task(
        id=uuid.uuid4(),
        owner_id=caller.id,
        organization_id=uuid.UUID(int=1),
        template_id=template.id,
        template_version_id=body.template_version_id,
        name=name,
        display_name=body.input[:64],
        workspace_name=name,
        workspace_status="pending",
        workspace_build_number=1,
        initial_prompt=body.input,
        status="pending",
        created_at=now,
        updated_at=now,
    )
    session.add(task)
    await session.commit()
    created = (await session.scalars(select(Task).options(*LOADED).where(Task.id == task.id))).one()
    event = TaskOut.model_validate(created).model_dump_json().encode()
    message = aio_pika.Message(event, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    await app.state.exchange.publish(message, routing_key=QUEUE)
    return created


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
