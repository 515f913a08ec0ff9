"""Lists of tasks by what ``task_index`` has of them, whose cost does not grow with the number of tasks.

An index in the order of a list serves only one value of each column before the time. ``task_totals`` names the values
that the caller's tasks have, usually a few dozen, and of each combination that matches, the newest entries are read.
Any conditions on these columns together are thus served by the same index. A list has one term besides, a runner or a
label, because an entry has one.

Tasks with recorded changes are taken from ``task_index_changes`` instead, unless too many wait there (``task_index``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from taskherd.domain.reports import AgentState
from taskherd.domain.view import Status
from taskherd.store.read_pool import Reader
from taskherd.store.task_index import ALL_OWNERS, IS_SMALL, LISTED, backlog

MAX_NAMES: Final = 2_000
"""Maximum number of tasks whose names begin with what a list asks for."""


class Statement:
    """A statement that is being built: its parameters, of which ``$1`` is the caller."""

    def __init__(self, caller: UUID, *values: Any) -> None:
        """Begin a statement on behalf of a caller, with the values of ``$2`` and so on."""
        self.values: list[Any] = [caller, *values]

    def bind(self, value: Any) -> str:
        """Append a value and return its placeholder."""
        self.values.append(value)
        return f"${len(self.values)}"


@dataclass(frozen=True, slots=True)
class Between:
    """A time after ``after`` and before ``before``, where these are set."""

    after: datetime | None = None
    before: datetime | None = None

    def __bool__(self) -> bool:
        """Return whether this excludes any time."""
        return self.after is not None or self.before is not None


@dataclass(frozen=True, slots=True)
class Listed:
    """What an index selects tasks by; None and empty: by all values.

    ``health`` are the values of which a task has one. ``term`` is a runner or a label, see ``messages.listing``.
    """

    template: str | None = None
    """The lowercase name of the template."""
    pool: str | None = None
    status: str | None = None
    state: str | None = None
    health: tuple[str, ...] = ()
    waiting: bool | None = None
    stalled: bool | None = None
    failed: bool | None = None
    """Whether the status is error or the state is failed."""
    term: str = ""

    def conditions(self, alias: str, statement: Statement) -> str:
        """Return the conditions on the columns of a table that has them, each with an AND before it."""
        conditions = ""
        if self.template is not None:
            name = statement.bind(self.template)
            conditions += f" AND {alias}.template_id IN (SELECT m.id FROM templates AS m WHERE lower(m.name) = {name})"
        for column in ("pool", "status", "state", "waiting", "stalled"):
            value = getattr(self, column)
            if value is not None:
                conditions += f" AND {alias}.{column} = {statement.bind(value)}"
        if self.failed is not None:
            failed = f"({alias}.status = '{Status.ERROR}' OR {alias}.state = '{AgentState.FAILED}')"
            conditions += f" AND {failed if self.failed else f'NOT {failed}'}"
        if self.health:
            conditions += f" AND {alias}.health = ANY(CAST({statement.bind(list(self.health))} AS text[]))"
        return conditions


@dataclass(frozen=True, slots=True)
class IndexedList:
    """The page of a list: up to ``limit`` of the tasks that match, by ``time``: the newest first, or the oldest.

    ``ids``: only those of these tasks that the caller may see. ``after`` is the time and the id of the last task of the
    page before.
    """

    caller: UUID
    limit: int
    time: str
    owner: UUID | None = None
    organization: UUID | None = None
    listed: Listed = field(default_factory=Listed)
    between: Between = field(default_factory=Between)
    after: tuple[datetime, UUID] | None = None
    ids: list[UUID] | None = None
    oldest_first: bool = False

    def select(self, statement: Statement) -> str:
        """Return a SELECT of the columns ``task_id`` and ``sorted_at`` of the page, in its order."""
        limit = statement.bind(self.limit)
        branches = [self._unchanged_ids(statement)] if self.ids is not None else self._unchanged(statement, limit)
        branches.append(self._changed(statement, limit))
        union = " UNION ALL ".join(f"({branch})" for branch in branches)
        return f"""
        WITH {backlog()}
        SELECT task_id, sorted_at FROM ({union}) AS matching {self._order("sorted_at", "task_id")} LIMIT {limit}"""

    def _order(self, time: str, task_id: str) -> str:
        direction = "ASC" if self.oldest_first else "DESC"
        return f"ORDER BY {time} {direction}, {task_id} {direction}"

    def _unchanged(self, statement: Statement, limit: str) -> list[str]:
        """Return a SELECT of the tasks that the caller sees as an admin, and one of those of one owner."""
        if self.owner is not None:
            owner = statement.bind(self.owner)
            return [self._combinations(statement, limit, f"(a.role = 'admin' OR {owner} = $1)", owner)]
        return [
            self._combinations(statement, limit, "a.role = 'admin'", None),
            self._combinations(statement, limit, "a.role <> 'admin'", "$1"),
        ]

    def _combinations(self, statement: Statement, limit: str, access: str, owner: str | None) -> str:
        """Return a SELECT of the first entries of each combination of values; an owner of None is everybody."""
        counted = "organization_id = a.organization_id"
        equal = " AND ".join(f"i.{column} = k.{column}" for column in LISTED)
        own = "" if owner is None else f"i.owner_id = {owner} AND "
        return f"""
        SELECT x.task_id, x.sorted_at
        FROM (
            SELECT k.* FROM memberships AS a JOIN task_totals AS k ON k.{counted} AND k.owner_id = {owner or ALL_OWNERS}
            WHERE a.user_id = $1 AND a.active AND {access} AND k.tasks > 0
                  {self._organization("a", statement)} {self.listed.conditions("k", statement)}
        ) AS k
        CROSS JOIN LATERAL (
            SELECT i.task_id, i.{self.time} AS sorted_at FROM task_index AS i
            WHERE {own} i.term = {statement.bind(self.listed.term)} AND {equal} {self._page("i", statement)}
                  AND {_UNCHANGED}
            {self._order(f"i.{self.time}", "i.task_id")} LIMIT {limit}
        ) AS x"""

    def _unchanged_ids(self, statement: Statement) -> str:
        ids, term = statement.bind(self.ids), statement.bind(self.listed.term)
        return f"""
        SELECT i.task_id, i.{self.time} AS sorted_at FROM task_index AS i
        WHERE i.task_id = ANY(CAST({ids} AS uuid[])) AND i.term = {term}
              {self._page("i", statement)} {self.listed.conditions("i", statement)} AND {_VISIBLE} AND {_UNCHANGED}"""

    def _changed(self, statement: Statement, limit: str) -> str:
        """Return a SELECT of the matching tasks among the recorded changes."""
        owner = "" if self.owner is None else f" AND c.owner_id = {statement.bind(self.owner)}"
        ids = "" if self.ids is None else f" AND c.task_id = ANY(CAST({statement.bind(self.ids)} AS uuid[]))"
        term = ""
        if self.listed.term:
            term = f" AND CAST(c.terms AS jsonb) ? CAST({statement.bind(self.listed.term)} AS text)"
        return f"""
        SELECT c.task_id, c.{self.time} AS sorted_at
        FROM task_index_changes AS c JOIN memberships AS a ON a.organization_id = c.organization_id
        WHERE {IS_SMALL} AND NOT c.deleted AND a.user_id = $1 AND a.active AND (a.role = 'admin' OR c.owner_id = $1)
              {owner} {ids} {self._organization("a", statement)} {self.listed.conditions("c", statement)} {term}
              {self._page("c", statement)}
        {self._order("sorted_at", "c.task_id")} LIMIT {limit}"""

    def _organization(self, alias: str, statement: Statement) -> str:
        if self.organization is None:
            return ""
        return f" AND {alias}.organization_id = {statement.bind(self.organization)}"

    def _page(self, alias: str, statement: Statement) -> str:
        """Return the conditions on the time and on the place after the page before."""
        conditions = time_conditions(f"{alias}.{self.time}", self.between, statement)
        if self.after is not None:
            time, task_id = self.after
            row = f"({alias}.{self.time}, {alias}.task_id)"
            later = ">" if self.oldest_first else "<"
            conditions += f" AND {row} {later} ({statement.bind(time)}, {statement.bind(task_id)})"
        return conditions


_VISIBLE: Final = """
COALESCE((
    SELECT a.role = 'admin' OR a.user_id = i.owner_id
    FROM memberships AS a WHERE a.user_id = $1 AND a.organization_id = i.organization_id AND a.active), false)"""
"""The caller may see the task of the entry ``i``, by the rule ``task_queries.can_see``, and with its plan."""

_UNCHANGED: Final = f"""
(SELECT true FROM task_index_changes AS c WHERE c.task_id = i.task_id AND ({IS_SMALL} OR c.deleted)) IS NOT TRUE"""
"""No recorded change of the entry ``i`` counts; a scalar subquery, which is a lookup whatever the planner assumes."""


def time_conditions(column: str, between: Between, statement: Statement) -> str:
    """Return the conditions on a time, each with an AND before it."""
    conditions = ""
    if between.after is not None:
        conditions += f" AND {column} > {statement.bind(between.after)}"
    if between.before is not None:
        conditions += f" AND {column} < {statement.bind(between.before)}"
    return conditions


async def by_name(
    pool: Reader, caller: UUID, prefix: str, owner: UUID | None, organization: UUID | None
) -> list[tuple[datetime, UUID]]:
    """Return the tasks that the caller may see and whose names begin with a lowercase ``prefix``, newest first.

    Each is its time of creation and its id.

    One more than ``MAX_NAMES`` is returned if there are more.
    """
    statement = Statement(caller)
    start, end = statement.bind(prefix), statement.bind(prefix + "\U0010ffff")
    limit = statement.bind(MAX_NAMES + 1)
    named = f"t.deleted_at IS NULL AND lower(t.name) ~>=~ {start} AND lower(t.name) ~<~ {end}"
    within = "" if organization is None else f" AND a.organization_id = {statement.bind(organization)}"
    if owner is None:
        parts = [("a.role = 'admin'", ""), ("a.role <> 'admin'", "AND t.owner_id = $1")]
    else:
        chosen = statement.bind(owner)
        parts = [(f"(a.role = 'admin' OR {chosen} = $1)", f"AND t.owner_id = {chosen}")]
    selects = [
        f"""(
        SELECT t.id, t.created_at FROM memberships AS a CROSS JOIN LATERAL (
            SELECT t.id, t.created_at FROM tasks AS t
            WHERE t.organization_id = a.organization_id {own} AND {named} LIMIT {limit}) AS t
        WHERE a.user_id = $1 AND a.active AND {access} {within} LIMIT {limit})"""
        for access, own in parts
    ]
    union = " UNION ALL ".join(selects)
    rows = await pool.fetch(f"SELECT id, created_at FROM ({union}) AS t LIMIT {limit}", *statement.values)
    return sorted(((row["created_at"], row["id"]) for row in rows), reverse=True)
