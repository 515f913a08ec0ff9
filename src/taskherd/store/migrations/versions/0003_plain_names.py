"""Plain names: ``tasks.state``, ``leases.last_heartbeat_at``, and comments that need no glossary.

A renamed column breaks statements of the release before. That is allowed here alone, since no release has had the old
names.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COMMENTS = (
    ("TABLE command_log", "Executed commands with their replies"),
    ("COLUMN command_log.digest", "digest of the body; a repeated id with another body is rejected"),
    ("COLUMN command_log.reply", "null only inside the transaction that executes the command"),
    ("TABLE directory_revision", "One row; rises with each apply that changes the directory"),
    ("TABLE inputs", "The inboxes: inputs to agents, delivered one at a time and in order"),
    ("TABLE leases", "One row per connected agent; most heartbeats write nothing else"),
    ("COLUMN leases.heard_at", "when a worker received the latest heartbeat"),
    ("COLUMN organizations.active", "false once the directory file has no such entry"),
    ("TABLE parked", "Reports that arrived before their task was created"),
    ("TABLE task_builds", "Every build that was the latest of its task, for lookups by the ids that clients know"),
    ("COLUMN task_builds.job_status", "last status while the build was the latest; failed if it timed out"),
    ("TABLE task_deadlines", "Copy of tasks.due_at, indexed here so that saving a task stays a heap-only update"),
    ("TABLE task_events", "History: every change of every task, append-only"),
    ("TABLE task_feed", "Published events in feed order; one transaction at a time assigns positions"),
    ("TABLE task_log_heads", "The next log id of each task; kept when its logs are pruned"),
    ("TABLE task_logs", "Log entries: the conversations with the agents"),
    ("COLUMN task_logs.entry_id", "assigned by the agent, unique within a build"),
    ("TABLE task_prompts", "Prompts, separate from tasks because they are long and seldom change; rows are immutable"),
    ("COLUMN task_prompts.version", "version of the task that introduced this prompt"),
    ("TABLE tasks", "One row per task; deleted tasks stay as tombstones"),
    ("COLUMN tasks.deleted_at", "set for a tombstone, which accepts only reports about its builds"),
    ("COLUMN tasks.memory", "the task state, which the document is derived from"),
    ("COLUMN tasks.due_at", "when the task must be checked even if nothing was reported; see task_deadlines"),
    ("COLUMN tasks.prompt_version", "version of the current prompt in task_prompts"),
    ("TABLE users", "Directory: users, who own tasks"),
    ("COLUMN users.active", "false once the directory file has no such entry"),
    ("TABLE work_requests", "Requests to runners that no report has answered yet"),
    ("COLUMN work_requests.attempt", "number of times the request was due and sent"),
    ("TABLE workers", "Live workers, with their drained times"),
    ("COLUMN workers.drained_since", "since when its report queues have been drained; null while they are not"),
    ("TABLE api_tokens", "API tokens of users"),
    ("COLUMN api_tokens.secret_hash", "SHA-256 of the secret, which is not stored"),
    ("COLUMN api_tokens.last_used_at", "exact to about a minute, because it is written in batches"),
    ("TABLE memberships", "Directory: members of organizations, with their roles"),
    ("COLUMN memberships.active", "false once the directory file has no such entry"),
    ("TABLE templates", "Directory: templates for tasks"),
    ("COLUMN templates.active", "false once the directory file has no such entry"),
    ("COLUMN template_versions.run", "instructions for the runner; run.pool names the pool"),
    ("COLUMN template_versions.active", "false once the directory file has no such entry"),
    ("COLUMN presets.active", "false once the directory file has no such entry"),
)

# In the order in which workers lock: a task, then its lease.
RENAMES = (
    "ALTER TABLE tasks RENAME COLUMN memory TO state",
    "ALTER TABLE leases RENAME COLUMN heard_at TO last_heartbeat_at",
)


def upgrade() -> None:
    """Write the comments, which block no reader or writer, then rename, so that those locks are held briefly."""
    run = op.get_bind().exec_driver_sql
    for target, comment in COMMENTS:
        run(f"COMMENT ON {target} IS '{comment}'")
    for statement in RENAMES:
        run(statement)
