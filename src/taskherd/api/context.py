"""The request context that handlers receive, and the process-wide context they share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from taskherd.api.http.ids import parse_uuid
from taskherd.api.http.query_parameters import NoQuery, Query, QueryModel, validate
from taskherd.store.task_queries import TaskRef

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from taskherd.api.actions.executor import ActionExecutor
    from taskherd.api.agents.refused_logs import RefusedLogs
    from taskherd.api.agents.report_publisher import ReportPublisher
    from taskherd.api.change_feed import ChangeFeed
    from taskherd.api.command_slots import CommandSlots
    from taskherd.api.dead_letters.queue import DeadLetterQueue
    from taskherd.api.fleet.queue_ages import QueueAges
    from taskherd.api.fleet.snapshots import FleetSnapshots, QueueDepths
    from taskherd.api.http.authenticator import Authenticator, Caller
    from taskherd.api.http.client_address import ClientAddresses
    from taskherd.api.http.concurrency import ConcurrencyLimit
    from taskherd.api.http.connections import ClientConnections
    from taskherd.api.http.open_requests import AccessMonitor
    from taskherd.api.http.rate_limit import RateLimits
    from taskherd.api.http.sign_in_failures import SignInFailures
    from taskherd.api.http.unread import UnreadResponses
    from taskherd.api.log_revisions import LogRevisions
    from taskherd.api.read_routing import ReadRouting
    from taskherd.broker.repeating_client import RepeatingClient
    from taskherd.observability.failpoints import Failpoint
    from taskherd.observability.metrics import Metrics
    from taskherd.observability.tracing import Tracing
    from taskherd.settings import Settings
    from taskherd.store import AsyncEngine
    from taskherd.store.read_pool import Reader, ReadPool

ME: Final = "me"
LSN: Final = "X-Taskherd-LSN"
"""The header of a response to a write, and of later reads that must show it (docs/adr/0040)."""
SAFE: Final = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The objects that all handlers of a process share."""

    settings: Settings
    metrics: Metrics
    reader: ReadPool
    """Reads from the primary."""
    reads: ReadRouting
    engine: AsyncEngine
    authenticator: Authenticator
    client_addresses: ClientAddresses
    connections: ClientConnections
    sign_in_failures: SignInFailures
    rate_limits: RateLimits
    batches: ConcurrencyLimit
    """The requests in progress that create many tasks."""
    action_requests: ConcurrencyLimit
    """The requests in progress for actions."""
    action_streams: ConcurrencyLimit
    """The open streams of the progress of actions."""
    action_executor: ActionExecutor
    access: AccessMonitor
    commands: RepeatingClient
    command_slots: CommandSlots
    reports: ReportPublisher
    change_feed: ChangeFeed
    log_revisions: LogRevisions
    log_streams: ConcurrencyLimit
    """The open streams of task logs."""
    refused_logs: RefusedLogs
    unread: UnreadResponses
    """The large responses that clients have not read yet."""
    agent_waits: ConcurrencyLimit
    """The requests of agents that wait for answers, by task."""
    agent_waits_of_owners: ConcurrencyLimit
    """The same, by the owner of the task."""
    fleet_snapshots: FleetSnapshots
    queue_depths: QueueDepths
    queue_ages: QueueAges
    dead_letters: DeadLetterQueue
    tracing: Tracing
    failpoint: Callable[[Failpoint], None]
    """Kills or freezes the process if this failpoint is armed."""
    stopping: asyncio.Event
    """Set when the process stops; streams and long polls then end."""

    @property
    def nullable_ids_as_objects(self) -> bool:
        """True if responses show nullable ids as objects, as in Coder's documentation, instead of as strings."""
        return self.settings.api_nullable_ids == "object"


@dataclass(slots=True)
class RequestContext:
    """One request. ``params`` are those of the path; ``query`` has the first value of each query parameter."""

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
    """The task and build number of an agent's token."""
    follows: bool = False
    """True for a request that follows changes: it reads only from the primary, like the change feed."""
    waits: bool = False
    """True for a long poll that has begun to wait for a change; its duration is no response time."""
    log_fields: dict[str, Any] = field(default_factory=dict)
    """Additional fields of the log line, next to method, route and status."""

    def parameters(self, model: type[Query]) -> Query:
        """Return the validated query parameters. Raise a 400 that names an invalid one.

        Args:
            model: the ``query`` model of the route.
        """
        assert model is self.query_model
        return validate(model, self.query)

    @property
    def caller(self) -> Caller:
        """The authenticated user, on routes that require a user's token."""
        assert self._caller is not None
        return self._caller

    @property
    def username(self) -> str | None:
        """The caller's name for the log, or None if no user is authenticated."""
        return None if self._caller is None else self._caller.username

    @property
    def charged_to(self) -> UUID | None:
        """The user, or the task of the agent, that the request counts for; None if none is authenticated."""
        if self._caller is not None:
            return self._caller.user_id
        return None if self.agent is None else self.agent[0]

    def set_caller(self, caller: Caller) -> None:
        """Record the authenticated caller."""
        self._caller = caller

    @property
    def reader(self) -> Reader:
        """What executes the request's reads: for a plain GET of a user perhaps a standby, else the primary."""
        if self.follows or self._caller is None or self.method not in SAFE:
            return self.api.reader
        return self.api.reads.reader(self._caller.user_id, self.headers.get(LSN.lower(), ""))

    async def written_lsn(self) -> str | None:
        """Return the LSN that the response names for later reads of the user; None if there is none to name."""
        return None if self._caller is None or self.method in SAFE else await self.api.reads.written_lsn()

    def mark_seen(self) -> None:
        """Record that the caller has now seen or made the newest changes; no later read shows them less."""
        self.api.reads.mark(self.caller.user_id)

    def user(self) -> UUID | str:
        """Return the path's ``{user}`` as an id or a username; ``me`` is the caller."""
        return self.user_of(self.params["user"])

    def user_of(self, text: str) -> UUID | str:
        """Return the user that a text names as an id or a username; ``me`` is the caller."""
        if text == ME or text.lower() == self.caller.username.lower():
            return self.caller.user_id
        return parse_uuid(text) or text

    def task_ref(self) -> TaskRef:
        """Return the reference of the task that the path's ``{user}`` and ``{task}`` name."""
        task = self.params["task"]
        return TaskRef(self.caller.user_id, self.user(), parse_uuid(task) or task)
