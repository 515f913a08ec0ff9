"""A request as a handler sees it, and the house: what all handlers work with."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from taskherd.api.http.ids import parse_uuid
from taskherd.api.query import Model, NoQuery, QueryModel, parse
from taskherd.store.task_queries import TaskRef

if TYPE_CHECKING:
    from taskherd.api.agents.report_publisher import ReportPublisher
    from taskherd.api.change_feed import ChangeFeed
    from taskherd.api.http.auth import Authenticator, Caller
    from taskherd.api.http.rate_limit import RateLimiter
    from taskherd.broker.rpc import CommandClient
    from taskherd.observability.metrics import Metrics
    from taskherd.observability.tracing import Tracing
    from taskherd.settings import Settings
    from taskherd.store import AsyncEngine
    from taskherd.store.reader import Reader

ME = "me"


@dataclass(frozen=True, slots=True)
class ApiContext:
    """What handlers work with: one for each process."""

    settings: Settings
    metrics: Metrics
    reader: Reader
    engine: AsyncEngine
    authenticator: Authenticator
    rate_limiter: RateLimiter
    commands: CommandClient
    reports: ReportPublisher
    change_feed: ChangeFeed
    tracing: Tracing
    stopping: asyncio.Event
    """Set when the process is to end: streams and waiters return soon then."""


@dataclass(slots=True)
class RequestContext:
    """One request. `params` are the path's, `query` holds the first value of each parameter."""

    api: ApiContext
    method: str
    params: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any = None
    """The validated body: an instance of the route's model."""
    query_model: type[QueryModel] = NoQuery
    """The route's query parameters."""
    _caller: Caller | None = None
    agent: tuple[UUID, int] | None = None
    """The task and build that an agent's token speaks for."""
    log_fields: dict[str, Any] = field(default_factory=dict)
    """What is told in the log beside method, route and status."""

    def parameters(self, model: type[Model]) -> Model:
        """Return the validated query parameters; `model` is the route's. Raises a 400 that names an invalid one."""
        assert model is self.query_model
        return parse(model, self.query)

    @property
    def caller(self) -> Caller:
        """Who asks, on routes that want a user's token."""
        assert self._caller is not None
        return self._caller

    @property
    def username(self) -> str | None:
        """The caller's name, for the log; None while nobody is known to ask."""
        return None if self._caller is None else self._caller.username

    def set_caller(self, caller: Caller) -> None:
        """Note who asks."""
        self._caller = caller

    def user(self) -> UUID | str:
        """The path's `{user}`: an id or a username; `me` is the caller."""
        text = self.params["user"]
        if text == ME or text.lower() == self.caller.username.lower():
            return self.caller.user_id
        return parse_uuid(text) or text

    def task_ref(self) -> TaskRef:
        """The task that the path's `{user}` and `{task}` name."""
        task = self.params["task"]
        return TaskRef(self.caller.user_id, self.user(), parse_uuid(task) or task)
