"""The same reads in FastAPI with SQLAlchemy's ORM, written as their documentation recommends.

A dependency opens a session for each request, another reads the caller from the database; relationships are loaded
with the row, and a response model validates the response.
"""

import hashlib
import os
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict
from sqlalchemy import JSON, DateTime, ForeignKey, Index, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, joinedload, mapped_column, relationship

POOL = 8


class Base(DeclarativeBase):
    """The declarative base of all tables."""

    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 - as the documentation writes it


class User(Base):
    """An owner of tasks."""

    __tablename__ = "orm_users"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    username: Mapped[str]
    avatar_url: Mapped[str]


class Token(Base):
    """An API token of a user."""

    __tablename__ = "orm_tokens"
    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey(User.id))
    secret_hash: Mapped[bytes]
    user: Mapped[User] = relationship()


class Template(Base):
    """A template of tasks."""

    __tablename__ = "orm_templates"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    display_name: Mapped[str]
    icon: Mapped[str]


class Task(Base):
    """A task."""

    __tablename__ = "orm_tasks"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner_id: Mapped[UUID] = mapped_column(ForeignKey(User.id))
    organization_id: Mapped[UUID]
    template_id: Mapped[UUID] = mapped_column(ForeignKey(Template.id))
    template_version_id: Mapped[UUID]
    name: Mapped[str]
    display_name: Mapped[str]
    workspace_id: Mapped[UUID | None]
    workspace_name: Mapped[str]
    workspace_status: Mapped[str]
    workspace_build_number: Mapped[int]
    workspace_agent_id: Mapped[UUID | None]
    workspace_agent_lifecycle: Mapped[str | None]
    workspace_agent_health: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    workspace_app_id: Mapped[UUID | None]
    initial_prompt: Mapped[str]
    status: Mapped[str]
    current_state: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    owner: Mapped[User] = relationship()
    template: Mapped[Template] = relationship()

    @property
    def owner_name(self) -> str:
        """The owner's name."""
        return self.owner.username

    @property
    def owner_avatar_url(self) -> str:
        """The URL of the owner's avatar."""
        return self.owner.avatar_url

    @property
    def template_name(self) -> str:
        """The template's name."""
        return self.template.name

    @property
    def template_display_name(self) -> str:
        """The template's display name."""
        return self.template.display_name

    @property
    def template_icon(self) -> str:
        """The URL of the template's icon."""
        return self.template.icon


Index("orm_tasks_owner_created_idx", Task.owner_id, Task.created_at.desc(), Task.id.desc())


class HealthOut(BaseModel):
    """The agent's health."""

    healthy: bool
    reason: str | None = None


class StateOut(BaseModel):
    """The agent's current state."""

    timestamp: datetime
    state: str
    message: str
    uri: str


class TaskOut(BaseModel):
    """A task in a response."""

    model_config = ConfigDict(from_attributes=True)
    id: UUID
    organization_id: UUID
    owner_id: UUID
    owner_name: str
    owner_avatar_url: str
    name: str
    display_name: str
    template_id: UUID
    template_version_id: UUID
    template_name: str
    template_display_name: str
    template_icon: str
    workspace_id: UUID | None
    workspace_name: str
    workspace_status: str
    workspace_build_number: int
    workspace_agent_id: UUID | None
    workspace_agent_lifecycle: str | None
    workspace_agent_health: HealthOut | None
    workspace_app_id: UUID | None
    initial_prompt: str
    status: str
    current_state: StateOut | None
    created_at: datetime
    updated_at: datetime


class TasksOut(BaseModel):
    """Tasks, newest first."""

    tasks: list[TaskOut]
    count: int


engine = create_async_engine(os.environ.get("BENCH_SQLALCHEMY_URL", "postgresql+asyncpg://"), pool_size=POOL)
sessions = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


async def get_session() -> AsyncIterator[AsyncSession]:
    """Open a session for each request."""
    async with sessions() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]


async def get_caller(session: SessionDep, coder_session_token: Annotated[str, Header()]) -> User:
    """Return the caller."""
    token_id, _, secret = coder_session_token.partition("-")
    token = await session.scalar(select(Token).options(joinedload(Token.user)).where(Token.id == token_id))
    if token is None or token.secret_hash != hashlib.sha256(secret.encode()).digest():
        raise HTTPException(401)
    return token.user


CallerDep = Annotated[User, Depends(get_caller)]
LOADED = (joinedload(Task.owner), joinedload(Task.template))


@app.get("/api/v2/tasks/{user}/{task_id}", response_model=TaskOut)
async def read_task(user: str, task_id: UUID, session: SessionDep, caller: CallerDep) -> Task:
    """Return a task of the caller."""
    task = await session.scalar(select(Task).options(*LOADED).where(Task.id == task_id, Task.owner_id == caller.id))
    if task is None or user != "me":
        raise HTTPException(404)
    return task


@app.get("/api/v2/tasks", response_model=TasksOut)
async def read_tasks(session: SessionDep, caller: CallerDep, limit: int = 50) -> dict[str, Any]:
    """Return the caller's newest tasks."""
    rows = await session.scalars(
        select(Task)
        .options(*LOADED)
        .where(Task.owner_id == caller.id)
        .order_by(Task.created_at.desc(), Task.id.desc())
        .limit(limit)
    )
    tasks = rows.all()
    return {"tasks": tasks, "count": len(tasks)}


FILL = """
INSERT INTO orm_users SELECT id, username, avatar_url FROM users;
INSERT INTO orm_templates SELECT id, name, display_name, icon FROM templates;
INSERT INTO orm_tokens SELECT id, user_id, secret_hash FROM api_tokens;
INSERT INTO orm_tasks (
    id, owner_id, organization_id, template_id, template_version_id, name, display_name, workspace_id, workspace_name,
    workspace_status, workspace_build_number, workspace_agent_id, workspace_agent_lifecycle, workspace_agent_health,
    workspace_app_id, initial_prompt, status, current_state, created_at, updated_at)
SELECT t.id, t.owner_id, t.organization_id, t.template_id, t.template_version_id, t.name, t.display_name,
       (t.document->>'workspace_id')::uuid, t.document->>'workspace_name', t.document->>'workspace_status',
       (t.document->>'workspace_build_number')::int, (t.document->>'workspace_agent_id')::uuid,
       t.document->>'workspace_agent_lifecycle', t.document->'workspace_agent_health',
       (t.document->>'workspace_app_id')::uuid, p.prompt, t.status, t.document->'current_state',
       t.created_at, t.updated_at
FROM tasks AS t JOIN task_prompts AS p ON p.task_id = t.id AND p.version = t.prompt_version;
"""
"""Fills the tables from taskherd's."""

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
