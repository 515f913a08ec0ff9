"""All tables as SQLAlchemy Core metadata; a test keeps them equal to the result of the migrations.

Rows of tasks refer to the directory without foreign keys: the references are checked when a task is created, and the
directory never deletes. The columns that change with every report (``version`` to ``due_at``) have no index, so that
saving a task is a heap-only update. https://www.postgresql.org/docs/current/storage-hot.html
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

from taskherd.store.statements import SET_ONCE

SCHEMA_VERSION_TABLE: Final = "taskherd_schema"
PARTITIONED: Final = ("task_events", "task_logs")

METADATA: Final = MetaData(
    naming_convention={"pk": "%(table_name)s_pkey", "fk": "%(table_name)s_%(column_0_name)s_fkey"},
)

Time: Final = TIMESTAMP(timezone=True)
Symbol: Final = Text(collation="C")
"""A short text that is only compared with equal ones, for which the byte order is enough."""


def _id(name: str = "id", **kwargs: Any) -> Column[Any]:
    return Column(name, Uuid, primary_key=True, **kwargs)


def _column(name: str, kind: Any, **kwargs: Any) -> Column[Any]:
    return Column(name, kind, nullable=False, **kwargs)


def _active() -> Column[Any]:
    return _column(
        "active", Boolean, server_default=text("true"), comment="false once the directory file has no such entry"
    )


LIVE: Final = text("deleted_at IS NULL")


def _names(name: str, column: str, *, unique: bool = False) -> Index:
    """Return an index for whole names and for beginnings of names, whatever the collation of the database."""
    lower = func.lower(literal_column("name")).label("lower_name")
    return Index(
        name, column, lower, unique=unique, postgresql_where=LIVE, postgresql_ops={"lower_name": "text_pattern_ops"}
    )


def _newest_live(name: str, column: str) -> Index:
    return Index(name, column, text("created_at DESC"), text("id DESC"), postgresql_where=LIVE)


# The directory: the entities that tasks refer to, as of the last applied directory file.

organizations = Table(
    "organizations",
    METADATA,
    _id(),
    _column("name", Text),
    _column("display_name", Text),
    _active(),
    Index("organizations_name_key", text("lower(name)"), unique=True),
    comment="Directory: organizations",
)

users = Table(
    "users",
    METADATA,
    _id(),
    _column("username", Text),
    _column("name", Text),
    _column("email", Text),
    _column("avatar_url", Text),
    Column("github_com_user_id", BigInteger),
    _active(),
    Index("users_username_key", text("lower(username)"), unique=True),
    Index("users_github_com_user_id_idx", "github_com_user_id"),
    comment="Directory: users, who own tasks",
)

memberships = Table(
    "memberships",
    METADATA,
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("organization_id", Uuid, ForeignKey("organizations.id"), nullable=False),
    _column("role", Text),
    _active(),
    PrimaryKeyConstraint("user_id", "organization_id"),
    CheckConstraint("role IN ('member', 'admin')", name="memberships_role_check"),
    comment="Directory: members of organizations, with their roles",
)

templates = Table(
    "templates",
    METADATA,
    _id(),
    Column("organization_id", Uuid, ForeignKey("organizations.id"), nullable=False),
    _column("name", Text),
    _column("display_name", Text),
    _column("icon", Text),
    _column("description", Text, server_default=text("''")),
    _column("active_version_id", Uuid),
    _active(),
    Index("templates_name_key", "organization_id", text("lower(name)"), unique=True),
    comment="Directory: templates for tasks",
)

template_versions = Table(
    "template_versions",
    METADATA,
    _id(),
    Column("template_id", Uuid, ForeignKey("templates.id"), nullable=False),
    _column("name", Text),
    _column("run", JSONB, comment="instructions for the runner; run.pool names the pool"),
    _active(),
    Index("template_versions_name_key", "template_id", text("lower(name)"), unique=True),
    comment="Directory: versions of templates",
)

presets = Table(
    "presets",
    METADATA,
    _id(),
    Column("template_version_id", Uuid, ForeignKey("template_versions.id"), nullable=False),
    _column("name", Text),
    _column("is_default", Boolean),
    _column("parameters", JSONB),
    _active(),
    Index("presets_name_key", "template_version_id", text("lower(name)"), unique=True),
    comment="Directory: named sets of parameters",
)

runners = Table(
    "runners",
    METADATA,
    Column("name", Text, primary_key=True),
    _column("pool", Text),
    _active(),
    comment="Directory: runners that are known before they first say hello",
)

directory_revision = Table(
    "directory_revision",
    METADATA,
    Column("id", Boolean, primary_key=True, server_default=text("true")),
    _column("revision", BigInteger),
    CheckConstraint("id", name="directory_revision_id_check"),
    comment="One row; rises with each apply that changes the directory",
)

# Tasks and the rows that belong to one task.

tasks = Table(
    "tasks",
    METADATA,
    _id(),
    _column("owner_id", Uuid, info=SET_ONCE),
    _column("organization_id", Uuid, info=SET_ONCE),
    _column("template_id", Uuid, info=SET_ONCE),
    _column("template_version_id", Uuid, info=SET_ONCE),
    Column("preset_id", Uuid, info=SET_ONCE),
    _column("name", Text, info=SET_ONCE),
    _column("display_name", Text, info=SET_ONCE),
    _column("created_at", Time, info=SET_ONCE),
    _column("version", BigInteger),
    _column("updated_at", Time),
    Column("deleted_at", Time, comment="set for a tombstone, which accepts only reports about its builds"),
    _column("status", Text),
    _column("document", JSON, comment="the task document, without prompt and directory names"),
    _column("state", JSON, comment="the task state, which the document is derived from"),
    Column("due_at", Time, comment="when the task must be checked even if nothing was reported; see task_deadlines"),
    _column("prompt_version", BigInteger, comment="version of the current prompt in task_prompts"),
    Column("erased_at", Time, info=SET_ONCE, comment="set for a tombstone whose contents were erased"),
    _names("tasks_owner_name_key", "owner_id", unique=True),
    _names("tasks_organization_name_idx", "organization_id"),
    _newest_live("tasks_owner_created_idx", "owner_id"),
    _newest_live("tasks_organization_created_idx", "organization_id"),
    Index("tasks_unerased_idx", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL AND erased_at IS NULL")),
    comment="One row per task; deleted tasks stay as tombstones",
)

task_prompts = Table(
    "task_prompts",
    METADATA,
    _column("task_id", Uuid),
    _column("version", BigInteger, comment="version of the task that introduced this prompt"),
    _column("prompt", Text),
    PrimaryKeyConstraint("task_id", "version"),
    comment="Prompts, separate from tasks because they are long and seldom change; rows are immutable",
)

running_tasks = Table(
    "running_tasks",
    METADATA,
    _id("task_id"),
    _column("owner_id", Uuid),
    Index("running_tasks_owner_id_idx", "owner_id"),
    comment="The running tasks, to count those of an owner; written when a task starts or ends, unlike tasks",
)


def _listed() -> list[Column[Any]]:
    """Return the columns by which lists select tasks and totals count them."""
    return [
        _column("template_id", Uuid),
        _column("pool", Symbol),
        _column("status", Symbol),
        _column("state", Symbol, comment="what the agent said that it does, or none"),
        _column("health", Symbol, comment="see messages.listing.ListedHealth"),
        _column("waiting", Boolean, comment="true while the agent has an open request"),
        _column("stalled", Boolean),
    ]


_LISTED_KEY: Final = ("template_id", "pool", "status", "state", "health", "waiting", "stalled")


def _newest_listed(name: str, time: str, *first: str) -> Index:
    return Index(name, *first, *_LISTED_KEY, text(f"{time} DESC"), text("task_id DESC"))


task_index = Table(
    "task_index",
    METADATA,
    _column("task_id", Uuid),
    _column("term", Symbol, comment="empty for the task itself; runner:NAME or label:KEY=VALUE, in lower case"),
    _column("organization_id", Uuid),
    _column("owner_id", Uuid),
    *_listed(),
    _column("created_at", Time),
    _column("changed_at", Time, comment="when the task last changed, exact to a minute"),
    PrimaryKeyConstraint("task_id", "term"),
    _newest_listed("task_index_template_created_idx", "created_at", "term"),
    _newest_listed("task_index_template_changed_idx", "changed_at", "term"),
    _newest_listed("task_index_owner_created_idx", "created_at", "owner_id", "term"),
    _newest_listed("task_index_owner_changed_idx", "changed_at", "owner_id", "term"),
    comment="The tasks by what lists select them by, as of before task_index_changes; workers keep it up to date",
)

task_index_changes = Table(
    "task_index_changes",
    METADATA,
    _id("task_id"),
    _column("organization_id", Uuid),
    _column("owner_id", Uuid),
    *_listed(),
    _column("created_at", Time),
    _column("changed_at", Time),
    _column("terms", JSON, comment="the terms of the task besides the empty one"),
    _column("deleted", Boolean),
    comment="Tasks whose rows in task_index and task_totals are out of date, with what those should be",
)

task_totals = Table(
    "task_totals",
    METADATA,
    _column("organization_id", Uuid),
    _column("owner_id", Uuid, comment="the nil UUID: the tasks of all owners together"),
    *_listed(),
    _column("tasks", BigInteger),
    PrimaryKeyConstraint("organization_id", "owner_id", *_LISTED_KEY),
    comment="How many tasks have the same values of all these columns, as of before task_index_changes",
)

task_deadlines = Table(
    "task_deadlines",
    METADATA,
    _id("task_id"),
    _column("due_at", Time),
    Index("task_deadlines_due_at_idx", "due_at"),
    comment="Copy of tasks.due_at, indexed here so that saving a task stays a heap-only update",
)

leases = Table(
    "leases",
    METADATA,
    _id("task_id"),
    _column("build_number", Integer),
    Column("agent_id", Uuid),
    _column("seq", BigInteger),
    Column("observed_at", Time),
    _column("last_heartbeat_at", Time, comment="when a worker received the latest heartbeat"),
    comment="One row per connected agent; most heartbeats write nothing else",
)

inputs = Table(
    "inputs",
    METADATA,
    _id("input_id"),
    _column("task_id", Uuid),
    _column("ordinal", BigInteger),
    _column("content", Text),
    _column("state", Text),
    _column("created_at", Time),
    Column("sent_at", Time),
    Column("decided_at", Time),
    Column("detail", Text),
    Column("actor_id", Uuid),
    _column(
        "steers",
        Boolean,
        server_default=text("false"),
        comment="sent with an interrupt: goes before inputs that do not steer",
    ),
    UniqueConstraint("task_id", "ordinal", name="inputs_task_id_ordinal_key"),
    Index("inputs_open_idx", "task_id", "ordinal", postgresql_where=text("decided_at IS NULL")),
    CheckConstraint("state IN ('queued', 'sent', 'delivered', 'failed')", name="inputs_state_check"),
    CheckConstraint("(decided_at IS NOT NULL) = (state IN ('delivered', 'failed'))", name="inputs_decided_check"),
    comment="The inboxes: inputs to agents, delivered one at a time and in order",
)

work_requests = Table(
    "work_requests",
    METADATA,
    _id("request_id"),
    _column("task_id", Uuid),
    _column("build_number", Integer),
    _column("type", Text),
    Column("input_id", Uuid),
    Column("target_runner", Text),
    _column("attempt", Integer, comment="number of times the request was due and sent"),
    _column("created_at", Time),
    _column("next_at", Time),
    Column("first_sent_at", Time),
    Column("interrupt_id", Uuid),
    Column("agent_request_id", Uuid, comment="of an agent.answer: the request of the agent that was answered"),
    Index("work_requests_task_id_idx", "task_id"),
    Index("work_requests_next_at_idx", "next_at"),
    comment="Requests to runners that no report has answered yet",
)

parked = Table(
    "parked",
    METADATA,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _column("task_id", Uuid),
    _column("parked_at", Time),
    _column("report", JSON),
    Index("parked_task_id_idx", "task_id"),
    Index("parked_parked_at_idx", "parked_at"),
    comment="Reports that arrived before their task was created",
)

task_logs = Table(
    "task_logs",
    METADATA,
    _column("task_id", Uuid),
    _column("log_id", BigInteger, comment="counts from 0 per task and never changes"),
    _column("build_number", Integer),
    _column("entry_id", BigInteger, comment="assigned by the agent, unique within a build"),
    _column("seq", BigInteger),
    _column("type", Text),
    _column("content", Text),
    _column("time", Time),
    _column("logged_at", Time),
    Column("kind", Text),
    Column("title", Text),
    Column("status", Text),
    Column("data", JSON, comment="the entry for programs; its content says the same to people"),
    Column(
        "first_seq",
        BigInteger,
        comment="the lowest seq with which it was reported, by which readers order it; null: older than this column",
    ),
    Column(
        "revision",
        BigInteger,
        comment="revision of the log with which it was added or last changed; null: older than this column",
    ),
    PrimaryKeyConstraint("task_id", "log_id", "logged_at"),
    Index("task_logs_entry_idx", "task_id", "build_number", "entry_id"),
    CheckConstraint("type IN ('input', 'output')", name="task_logs_type_check"),
    CheckConstraint("kind IN ('message', 'thought', 'tool_call', 'plan', 'notice')", name="task_logs_kind_check"),
    CheckConstraint("status IN ('pending', 'in_progress', 'completed', 'failed')", name="task_logs_status_check"),
    postgresql_partition_by="RANGE (logged_at)",
    comment="Log entries: the conversations with the agents",
)

task_log_heads = Table(
    "task_log_heads",
    METADATA,
    _id("task_id"),
    _column("next_log_id", BigInteger),
    _column("content_bytes", BigInteger, server_default=text("0")),
    _column("omitted_entries", BigInteger, server_default=text("0"), comment="entries left out of a full log"),
    _column("omitted_bytes", BigInteger, server_default=text("0")),
    Column("omitted_since", Time),
    Column("notice_log_id", BigInteger, comment="the entry that says what was left out"),
    _column(
        "revision", BigInteger, server_default=text("0"), comment="rises with each change of the log, for its followers"
    ),
    comment="The next log id and the size of each task's log; kept when its logs are pruned",
)


def _tokens(kind: Any) -> list[Column[Any]]:
    return [_column(f"{name}_tokens", kind) for name in ("input", "output", "cache_read", "cache_write")]


task_usage = Table(
    "task_usage",
    METADATA,
    _column("task_id", Uuid),
    _column("build_number", Integer),
    _column("model", Text, comment="empty if it is not known"),
    _column("currency", Text, comment="empty in the row with the tokens"),
    *_tokens(BigInteger),
    _column("amount", Numeric(21, 9)),
    PrimaryKeyConstraint("task_id", "build_number", "model", "currency"),
    comment="What agents used and cost, by task, build and model: the greatest that was reported; deleted tasks stay",
)

daily_usage = Table(
    "daily_usage",
    METADATA,
    _column("day", Date, comment="the day in UTC on which it was reported"),
    _column("organization_id", Uuid),
    _column("user_id", Uuid),
    _column("template_id", Uuid),
    _column("model", Text),
    _column("currency", Text, comment="empty in the row with the tokens"),
    *_tokens(Numeric(38, 0)),
    _column("amount", Numeric(38, 9)),
    PrimaryKeyConstraint("day", "organization_id", "user_id", "template_id", "model", "currency"),
    comment="What agents used and cost, by day: the sum of what was new in task_usage",
)

agent_requests = Table(
    "agent_requests",
    METADATA,
    _column("task_id", Uuid),
    _column("request_id", Uuid, comment="chosen by the reporter, and unique within its task only"),
    _column("organization_id", Uuid, info=SET_ONCE),
    _column("owner_id", Uuid, info=SET_ONCE),
    _column("build_number", Integer),
    _column(
        "shown",
        Text,
        comment="what became of the request, as users see it: derived from its report, its answer and the task",
    ),
    _column("report", JSON, comment="the greatest report of the request, in its canonical form"),
    _column("since", Time, comment="when the first report of the request was received"),
    _column("received_at", Time, comment="when the greatest report of the request was received"),
    Column("answer_option_id", Text),
    Column("answer_text", Text),
    Column("answered_by", Uuid),
    Column("answered_at", Time),
    Column("answer_command_id", Uuid),
    Column("delivered_at", Time, comment="when it was known that the agent got the answer"),
    PrimaryKeyConstraint("task_id", "request_id"),
    Index("agent_requests_open_idx", "since", "task_id", "request_id", postgresql_where=text("shown = 'open'")),
    CheckConstraint("shown IN ('open', 'answered', 'withdrawn', 'expired')", name="agent_requests_shown_check"),
    comment="What agents asked people for, and what became of it",
)

# History and outbox.

task_events = Table(
    "task_events",
    METADATA,
    _column("task_id", Uuid),
    _column("version", BigInteger),
    _column("occurred_at", Time),
    _column("kind", Text),
    _column("document", JSON),
    _column("changes", ARRAY(Text)),
    _column("cause", JSON),
    _column("prompt_version", BigInteger),
    PrimaryKeyConstraint("task_id", "version", "occurred_at"),
    CheckConstraint("kind IN ('created', 'updated', 'deleted')", name="task_events_kind_check"),
    postgresql_partition_by="RANGE (occurred_at)",
    comment="History: every change of every task, append-only",
)

outbox = Table(
    "outbox",
    METADATA,
    _column("task_id", Uuid),
    _column("version", BigInteger),
    _column("occurred_at", Time),
    PrimaryKeyConstraint("task_id", "version"),
    comment="Events that the broker has not confirmed yet",
)

task_feed_position = Sequence("task_feed_position", metadata=METADATA, data_type=BigInteger)

task_feed = Table(
    "task_feed",
    METADATA,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    _column("task_id", Uuid),
    _column("version", BigInteger),
    _column("occurred_at", Time),
    Index("task_feed_task_idx", "task_id", "version"),
    comment="Published events in feed order; one transaction at a time assigns positions",
)

# For lookups of builds, workspaces and agents by the API; the worker writes it.

task_builds = Table(
    "task_builds",
    METADATA,
    _id("build_id"),
    _column("task_id", Uuid, info=SET_ONCE),
    _column("number", Integer, info=SET_ONCE),
    _column("transition", Text),
    _column("job_status", Text, comment="last status while the build was the latest; failed if it timed out"),
    Column("workspace_id", Uuid),
    Column("agent_id", Uuid),
    Column("error", Text),
    _column("created_at", Time, info=SET_ONCE),
    _column("updated_at", Time),
    Index("task_builds_task_id_idx", "task_id", "number", unique=True),
    Index("task_builds_workspace_id_idx", "workspace_id", "number"),
    Index("task_builds_agent_id_idx", "agent_id", "number"),
    comment="Every build that was the latest of its task, for lookups by the ids that clients know",
)

# Access to the API.

api_tokens = Table(
    "api_tokens",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    _column("secret_hash", LargeBinary, comment="SHA-256 of the secret, which is not stored"),
    _column("created_at", Time, server_default=text("now()")),
    Column("expires_at", Time),
    Column("revoked_at", Time),
    Column("last_used_at", Time, comment="exact to about a minute, because it is written in batches"),
    Column(
        "issued_from",
        Text,
        ForeignKey("api_tokens.id"),
        comment="the token that requested this one, and ends it",
    ),
    Column("issued_by", Uuid, ForeignKey("users.id"), comment="the user of issued_from then"),
    Index("api_tokens_user_id_idx", "user_id"),
    Index("api_tokens_issued_from_idx", "issued_from", postgresql_where=text("issued_from IS NOT NULL")),
    Index("api_tokens_ended_idx", text("LEAST(revoked_at, expires_at)")),
    comment="API tokens of users",
)

task_actions = Table(
    "task_actions",
    METADATA,
    _id(),
    _column("user_id", Uuid),
    _column("token_id", Text, comment="the token that requested the action, which ends with it"),
    _column("action", Text),
    Column("input", Text, comment="for a send, while the action is not finished"),
    Column("query", Text),
    _column("digest", LargeBinary, comment="digest of the request; a repeated key with another one is rejected"),
    _column("total", Integer),
    _column("succeeded", Integer, server_default=text("0")),
    _column("refused", Integer, server_default=text("0")),
    _column(
        "unconfirmed",
        Integer,
        server_default=text("0"),
        comment="tasks whose command was sent, without an answer before the end",
    ),
    _column("failures", Integer, server_default=text("0")),
    _column("created_at", Time),
    _column("next_at", Time, comment="when the next step is due; while a step is executed, the end of its lease"),
    Column("lease_id", Uuid),
    Column("started_at", Time),
    Column("canceled_at", Time),
    Column("finished_at", Time),
    Column("failure", Text),
    Index("task_actions_next_at_idx", "next_at", postgresql_where=text("finished_at IS NULL")),
    Index("task_actions_pause_idx", "next_at", postgresql_where=text("finished_at IS NOT NULL")),
    Index("task_actions_user_idx", "user_id", text("created_at DESC"), text("id DESC")),
    CheckConstraint("action IN ('pause', 'resume', 'delete', 'send', 'interrupt')", name="task_actions_action_check"),
    comment="Jobs that do one thing to many tasks; API processes write and execute them",
)

task_action_tasks = Table(
    "task_action_tasks",
    METADATA,
    _column("action_id", Uuid),
    _column("ordinal", Integer),
    _column("task_id", Uuid),
    Column("status", Integer, comment="the HTTP status that a request for this task would have had"),
    Column("message", Text),
    Column("detail", Text),
    Column("decided_at", Time),
    _column(
        "attempts",
        Integer,
        server_default=text("0"),
        comment="steps that have sent its command, counted before they do",
    ),
    Column("command_id", Uuid, comment="id of its command; null until a step sends it"),
    PrimaryKeyConstraint("action_id", "ordinal"),
    Index("task_action_tasks_pending_idx", "action_id", "attempts", "ordinal", postgresql_where=text("status IS NULL")),
    comment="The tasks of each action, with their results",
)

# The worker's own bookkeeping.

command_log = Table(
    "command_log",
    METADATA,
    _id("command_id"),
    _column("digest", LargeBinary, comment="digest of the body; a repeated id with another body is rejected"),
    Column("reply", JSON, comment="null only inside the transaction that executes the command"),
    _column("created_at", Time),
    Column("task_id", Uuid, comment="null for commands of releases that did not record it"),
    _column(
        "kept_until_erased",
        Boolean,
        server_default=text("false"),
        comment="a send that answered a request: no input recognizes it later",
    ),
    Index("command_log_created_at_idx", "created_at", postgresql_where=text("NOT kept_until_erased")),
    Index("command_log_task_id_idx", "task_id"),
    comment="Executed commands with their replies",
)

build_claims = Table(
    "build_claims",
    METADATA,
    _id("task_id"),
    _column("build_number", Integer),
    _column("runner", Text),
    _column("claimed_at", Time),
    comment="The latest claimed build of each task; written under the lock of the task",
)

runner_hellos = Table(
    "runner_hellos",
    METADATA,
    Column("name", Text, primary_key=True),
    _column("pool", Text),
    _column("hello_at", Time),
    comment="Runners that said hello, whose queues the workers declare",
)

task_rates = Table(
    "task_rates",
    METADATA,
    _column("hour", Time),
    _column("organization_id", Uuid),
    _column("owner_id", Uuid),
    _column("created", BigInteger),
    _column("completed", BigInteger),
    _column("failed", BigInteger, comment="tasks that came to need a person: their start, their agent or they failed"),
    PrimaryKeyConstraint("hour", "organization_id", "owner_id"),
    comment="What became of tasks in each hour; workers add what they counted every few seconds",
)

dead_letter_rates = Table(
    "dead_letter_rates",
    METADATA,
    _column("hour", Time),
    _column("reason", Text),
    _column("letters", BigInteger),
    PrimaryKeyConstraint("hour", "reason"),
    comment="What workers dead-lettered in each hour",
)

workers = Table(
    "workers",
    METADATA,
    Column("worker_id", Text, primary_key=True),
    _column("started_at", Time),
    _column("seen_at", Time),
    Column("drained_since", Time, comment="since when its report queues have been drained; null while they are not"),
    comment="Live workers, with their drained times",
)
