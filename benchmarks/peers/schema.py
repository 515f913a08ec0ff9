"""The tables of the FastStream peer: tasks with 25 columns, and a history of events."""

from sqlalchemy import JSON, BigInteger, Column, DateTime, Integer, MetaData, Table, Text, Uuid, func

METADATA = MetaData()

tasks = Table(
    "peer_tasks",
    METADATA,
    Column("id", Uuid, primary_key=True),
    Column("owner_id", Uuid, nullable=False),
    Column("organization_id", Uuid, nullable=False),
    Column("template_id", Uuid, nullable=False),
    Column("template_version_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("build_number", Integer, nullable=False),
    Column("workspace_id", Uuid, nullable=False),
    Column("workspace_name", Text, nullable=False),
    Column("agent_id", Uuid, nullable=False),
    Column("lifecycle", Text, nullable=False),
    Column("app_health", Text, nullable=False),
    Column("heartbeat_seq", BigInteger, nullable=False),
    Column("heard_at", DateTime(timezone=True), nullable=False),
    Column("status_seq", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("state_message", Text, nullable=False),
    Column("state_uri", Text, nullable=False),
    Column("state_at", DateTime(timezone=True), nullable=False),
)

events = Table(
    "peer_events",
    METADATA,
    Column("task_id", Uuid, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("document", JSON, nullable=False),
    Column("occurred_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

FILL = """
INSERT INTO peer_tasks
SELECT md5(g::text)::uuid, md5('o')::uuid, md5('p')::uuid, md5('q')::uuid, md5('r')::uuid, 'bench-' || g, 'Bench ' || g,
       repeat('p', %(prompt)s), now(), now(), 1, 'active', 1, md5('w' || g)::uuid, 'bench-' || g,
       md5('agent' || g)::uuid, 'ready', 'disabled', 1, now(), 1, 'idle', 'ready', '', now()
FROM generate_series(0, %(tasks)s - 1) AS g
"""
