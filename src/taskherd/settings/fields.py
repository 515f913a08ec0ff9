"""Every setting of taskherd: name, default, limits and description."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from ipaddress import IPv4Network, IPv6Network
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from taskherd.durations import parse
from taskherd.settings import urls
from taskherd.settings.types import (
    MIN_SECRET_KEY,
    AmqpUrl,
    DatabaseUrl,
    Drain,
    Networks,
    SandboxPaths,
    Seconds,
    SecretKeys,
    SenderPools,
    Senders,
    StandbyUrl,
    UidRange,
    parse_networks,
    parse_sender_pools,
    parse_senders,
)

PREFIX = "TASKHERD_"
_INSTALLATION_BYTES = 4
_HOUR = 3600.0
_YEAR = 8784 * _HOUR
_CENTURY = 100 * _YEAR
_MAX_COUNT = 2**31 - 1
_MAX_BYTES = 2**60


class Settings(BaseSettings):
    """The settings, read from ``TASKHERD_…`` environment variables; ``load`` explains their errors in plain text."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, hide_input_in_errors=True, extra="forbid"
    )

    database_url: DatabaseUrl = Field(
        "",
        repr=False,
        description="URL of the PostgreSQL database (version 15 or newer). Of several hosts the last good one is tried "
        "first, and only one that is writable is used, unless `target_session_attrs` is `any`.",
        json_schema_extra={
            "expected": "postgresql://user:password@host:5432/database, or several hosts as in host1:5432,host2:5432",
        },
    )
    database_read_url: StandbyUrl = Field(
        "",
        repr=False,
        description="URL of a standby of that database, from which the API serves reads; empty: all reads go to the "
        "primary.",
        json_schema_extra={"expected": "postgresql://user:password@standby:5432/database"},
    )
    read_lag_most: Seconds = Field(
        5.0,
        ge=0.5,
        le=60,
        description="Maximum lag of the standby behind the primary; beyond it, reads go to the primary.",
    )
    amqp_url: AmqpUrl = Field(
        "",
        repr=False,
        description="URL of the RabbitMQ broker (version 4.0 or newer), of several nodes of one cluster the last good "
        "one is tried first. Name the same nodes in all processes.",
        json_schema_extra={
            "expected": "amqp://user:password@host:5672/vhost, or amqps:// (the certificate is always verified), "
            "or several hosts as in host1:5672,host2:5672",
        },
    )
    secret_key: SecretKeys = Field(
        "",
        repr=False,
        description="Keys that sign agent tokens, separated by commas. The first one signs new tokens, all are "
        "accepted. To rotate, put the new key first; remove the old one when no agent that was started with it runs.",
        json_schema_extra={
            "expected": f"keys of at least {MIN_SECRET_KEY} characters, such as the output of `openssl rand -hex 32`",
        },
    )
    amqp_prefix: str = Field(
        "taskherd",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
        description="Prefix of the names of all exchanges and queues. Installations that share a RabbitMQ need "
        "different ones, none of which begins with another and a dot, and users of their own (operations.md, Secure).",
        json_schema_extra={"expected": "1 to 64 of the characters a-z 0-9 . _ -, the first a letter or digit"},
    )

    command_senders: Senders = Field(
        "",
        description="RabbitMQ users whose commands a worker executes, separated by commas: that of the API, and of the "
        "operators who replay commands. Others' commands are dead-lettered. Empty: whoever the broker lets write.",
        json_schema_extra={"expected": "names of RabbitMQ users, such as taskherd-api"},
    )
    report_senders: SenderPools = Field(
        "",
        description="RabbitMQ users whose reports and claims a worker accepts, each with the pools of the tasks that "
        "they may be about. The API needs `*`, because it publishes the reports of agents. Empty: whoever the broker "
        "lets write, about any task.",
        json_schema_extra={"expected": "USER=POOL|POOL,USER=* such as taskherd-api=*,taskherd-runner=default"},
    )

    agent_lost_after: Seconds = Field(
        30.0,
        ge=1,
        le=_HOUR,
        description="How long a connected agent may send no heartbeat before it counts as lost. Only time in which the "
        "report queues were drained counts. Keep it at three or more heartbeats of the runner.",
    )
    agent_connect_timeout: Seconds = Field(
        120.0, ge=1, le=_HOUR, description="How long a new agent may take to send its first heartbeat."
    )
    mass_silence_hold: Seconds = Field(
        300.0,
        ge=0,
        le=_HOUR,
        description="If most connected agents fall silent at once, how long to wait before marking them lost; 0 "
        "turns the guard off.",
    )
    probe_every: Seconds = Field(
        1.0, ge=0.1, le=60, description="Time between two probes that a worker sends through each report queue."
    )
    probe_timeout: Seconds = Field(
        5.0,
        ge=0.1,
        le=60,
        description="How long a probe may take through a report queue for the queue to count as drained.",
    )

    request_ttl: Seconds = Field(
        600.0,
        ge=1,
        le=24 * _HOUR,
        description="How long a work request may stay unanswered before it is dropped and its build or input fails.",
    )
    request_backoff_first: Seconds = Field(
        5.0, ge=0.1, le=_HOUR, description="Wait before a work request is first repeated; it doubles with each repeat."
    )
    request_backoff_most: Seconds = Field(
        60.0, ge=0.1, le=_HOUR, description="Maximum wait between two repeats of a work request."
    )
    runner_answer_timeout: Seconds = Field(
        60.0,
        ge=0.1,
        le=_HOUR,
        description="How long a task's runner may leave a start or delete unanswered before the pool receives it too.",
    )
    build_timeout: Seconds = Field(
        1800.0,
        ge=1,
        le=24 * _HOUR,
        description="How long a running build may send no report before it counts as failed. Raise it if starts "
        "legitimately take longer without reporting.",
    )
    interrupt_timeout: Seconds = Field(
        60.0,
        ge=1,
        le=_HOUR,
        description="How long the outcome of an interrupt may take before it counts as failed. Only time in which the "
        "report queues were drained counts. Runners need up to 50 s to end an agent that does not react.",
    )
    stalled_after: Seconds = Field(
        1800.0,
        ge=0,
        le=30 * 24 * _HOUR,
        description="How long an agent that is working may send nothing but heartbeats before its task shows it as "
        "stalled; 0 for never. A template's `run.stalled_after` overrides it.",
    )
    delete_backoff_most: Seconds = Field(
        _HOUR, ge=1, le=24 * _HOUR, description="Maximum wait before a failed delete of a workspace is tried again."
    )
    send_mode: Literal["queue", "strict"] = Field(
        "queue",
        description="What happens to an input for a busy task: queue it, or (strict) reject it as Coder's servers do.",
    )

    parked_ttl: Seconds = Field(
        900.0,
        ge=1,
        le=24 * _HOUR,
        description="How long a report for a task that does not exist yet is kept before it is dead-lettered.",
    )
    parked_most: int = Field(
        1000, ge=1, le=100_000, description="Maximum number of parked reports for one task; more are dead-lettered."
    )
    command_memory: Seconds = Field(
        24 * _HOUR,
        ge=24 * _HOUR,
        le=_YEAR,
        description="How long the reply to a command is kept; a repeated command gets the same reply until then.",
    )
    history_retention: Seconds = Field(
        2160 * _HOUR,
        ge=24 * _HOUR,
        le=_CENTURY,
        description=(
            "How long change events are kept; readers of the change feed can resume within this time. API tokens that"
            " were revoked or have expired are kept as long."
        ),
    )
    log_retention: Seconds = Field(
        2160 * _HOUR, ge=24 * _HOUR, le=_CENTURY, description="How long the logs of tasks are kept."
    )

    deleted_retention: Seconds = Field(
        720 * _HOUR,
        ge=0,
        le=_CENTURY,
        description=(
            "How long the contents of a deleted task are kept: prompt, inputs, log, history and replies. 0: they are"
            " erased within about 15 seconds after the deletion was published."
        ),
    )

    action_retention: Seconds = Field(
        168 * _HOUR,
        ge=0,
        le=_YEAR,
        description=(
            "How long finished task actions are kept with their results; of one user, only the newest 20 are."
        ),
    )

    log_bytes_rate: int = Field(
        256 * 1024,
        ge=1024,
        le=_MAX_BYTES,
        description="Bytes per second that one agent may add to its task's log by its runner, and as many through each "
        "API process, after a burst of 4 times as many. What an agent prints faster waits on the runner's disk; where "
        "that is full, the log says what was left out.",
    )
    log_entries_rate: int = Field(
        50,
        ge=1,
        le=1_000_000,
        description="Log entries per second that one agent may add to its task's log by its runner, and as many "
        "through each API process, after a burst of 4 times as many. Reports of its state and usage that follow from "
        "its output count, too.",
    )

    log_bytes_most: int = Field(
        64 * 1024 * 1024,
        ge=64 * 1024,
        le=_MAX_BYTES,
        description="Bytes of log entries that are kept of one task. Later entries are left out, and the last entry of "
        "the log says how many.",
    )
    log_entries_most: int = Field(
        100_000,
        ge=100,
        le=_MAX_COUNT,
        description="Number of log entries that are kept of one task. Later entries are left out, and the last entry "
        "of the log says how many.",
    )
    tasks_running_most: int = Field(
        100,
        ge=0,
        le=_MAX_COUNT,
        description="Maximum number of running tasks of one user: another create or resume is refused until one is "
        "paused or deleted, or its agent has ended; 0: unlimited.",
    )

    batch_most: int = Field(
        1000,
        ge=1,
        le=10_000,
        description="Maximum number of report deliveries in one batch; also of tasks, or a little more, while the "
        "deliveries are about different ones.",
    )
    batch_wait: Seconds = Field(
        0.0,
        ge=0,
        le=1,
        description="How long a batch waits for more deliveries. 0: up to 200 ms from 600 a second on."
        " Raise it to trade latency for fewer transactions.",
    )
    prefetch: int = Field(
        4000,
        ge=1,
        le=65_535,
        description="Maximum number of unacknowledged report deliveries of one worker. Of large ones there are fewer, "
        "so that they have at most 64 MiB together.",
    )
    report_partitions: int = Field(
        1,
        ge=1,
        le=256,
        description="Number of queues that reports are spread over; each is consumed by one worker at a time. Raise it "
        "if one worker cannot keep up; all workers need the same value.",
    )
    sweep_every: Seconds = Field(1.0, ge=0.05, le=60, description="Time between two checks for overdue tasks.")
    relay_every: Seconds = Field(
        1.0, ge=0.05, le=60, description="Time between two checks for unpublished events and due work requests."
    )
    grace: Seconds = Field(
        25.0,
        ge=1,
        le=600,
        description="How long a process may take to stop after SIGTERM; keep it below the orchestrator's grace period.",
    )

    api_host: str = Field("127.0.0.1", min_length=1, description="Address that the API listens on.")
    api_port: int = Field(7080, ge=0, le=65_535, description="Port that the API listens on; 0: any free port.")
    api_nullable_ids: Literal["string", "object"] = Field(
        "string",
        description="Form of ids that may be absent: a string or null, as Coder's servers send them, or an object, as "
        "Coder's documentation shows them.",
    )
    api_cors_origins: str = Field(
        "",
        description="Origins whose web pages may call the API, separated by commas; empty: same-origin only.",
        json_schema_extra={"expected": "origins such as https://example.com, or * for any"},
    )
    api_rate_limit: float = Field(
        100.0, ge=0, le=1_000_000, description="Sustained requests per second that one user may make; 0: unlimited."
    )
    api_rate_burst: int = Field(
        500, ge=1, le=1_000_000, description="Number of requests that one user may make in one burst."
    )
    api_create_rate: float = Field(
        60.0,
        ge=0,
        le=1_000_000,
        description="Sustained task creates per minute that one user may make through each API process; 0: limited "
        "only by the request rate. TASKHERD_TASKS_RUNNING_MOST is one limit for all of them.",
    )
    api_create_burst: int = Field(
        60, ge=1, le=1_000_000, description="Number of tasks that one user may create in one burst."
    )
    api_action_rate: float = Field(
        50.0,
        gt=0,
        le=10_000,
        description="Tasks per second that the actions of one user change; they are executed one after the other.",
    )
    api_agent_rate: float = Field(
        10.0,
        ge=0,
        le=1_000_000,
        description="Sustained requests per second that one agent may make with its token to each API process; "
        "0: unlimited.",
    )
    api_agent_burst: int = Field(
        100, ge=1, le=1_000_000, description="Number of requests that one agent may make in one burst."
    )
    api_trusted_proxies: Networks = Field(
        "",
        description="Addresses or networks of the proxies in front of the API, separated by commas; no agent may have "
        "an address in them. Behind them the client of a request is taken from X-Forwarded-For; from others that "
        "header is ignored. Rates are counted by client, and so are connections but those of these proxies.",
        json_schema_extra={
            "expected": "networks such as 192.0.2.7, 198.51.100.0/28 or 2001:db8::/64, separated by commas"
        },
    )
    api_command_timeout: Seconds = Field(
        10.0,
        ge=0.5,
        le=60,
        description="How long a write waits for the worker's reply before the API answers 503.",
    )
    api_read_timeout: Seconds = Field(
        10.0,
        ge=0.5,
        le=300,
        description="How long a client may take to send a request's head, and then its body.",
    )
    api_connections: int = Field(
        4000,
        ge=1,
        le=100_000,
        description="Maximum number of client connections of one API process; half of them are reserved for clients "
        "that have presented a valid token. Of more, an idle one of whoever has most is closed.",
    )
    api_anonymous_connections: int = Field(
        200,
        ge=1,
        le=100_000,
        description="Maximum number of connections of one client address that have not presented a valid token; of "
        "more, the one that has been quiet for longest is closed.",
    )
    api_followers_most: int = Field(
        500,
        ge=1,
        le=4000,
        description="Maximum number of streams of changes, long polls and WebSockets that one user may have open in "
        "one API process, which has room for 4,000 of all users.",
    )
    api_list_most: int = Field(
        5000,
        ge=500,
        le=100_000,
        description="Maximum number of tasks in a list that was requested without a limit; the newest are returned.",
    )

    migrate: Literal["auto", "never"] = Field(
        "auto",
        description="What a worker does at start if the schema is old: migrate it, or (never) refuse to start.",
    )
    database_pool: int = Field(10, ge=2, le=200, description="Maximum number of database connections of one process.")

    runner_name: str = Field(
        "",
        pattern=r"^[a-z0-9-]{0,64}$",
        description="Name of this runner, which must be unique and stay the same after restarts; empty: derived from "
        "the host name.",
        json_schema_extra={"expected": "up to 64 of the characters a-z 0-9 -"},
    )
    runner_pool: str = Field(
        "default",
        pattern=r"^[a-z0-9-]{1,64}$",
        description="Pool from which this runner takes work requests; no runner may have the name of a pool.",
        json_schema_extra={"expected": "1 to 64 of the characters a-z 0-9 -"},
    )
    runner_root: str = Field(
        ".taskherd/runner",
        min_length=1,
        description="Folder for the workspaces and state of a runner's tasks; each runner needs its own.",
    )
    runner_cgroup: str = Field(
        "",
        description="Delegated cgroup v2 in which each agent gets a cgroup for its limits; empty: memory is "
        "limited for each process of an agent separately.",
        json_schema_extra={"expected": "a path such as /sys/fs/cgroup/taskherd, or nothing"},
    )
    runner_agent_uids: UidRange = Field(
        "",
        description="Range of user ids, of which each task gets one of its own: its agent runs as that user and group. "
        "The first id runs no agent. The ids must belong to nothing else on the machine, also not to another runner; "
        "the runner must be root or have CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_KILL, CAP_SETGID and CAP_SETUID. "
        "Empty: all agents run as the runner's user.",
        json_schema_extra={"expected": "a range of at least two ids such as 200000-265535, or nothing"},
    )
    runner_sandbox_paths: SandboxPaths = Field(
        "/opt",
        description="Files and folders that sandboxed agents (run.sandbox in a template) can read besides /usr, such "
        "as their programs, separated by colons. Those that do not exist are ignored. The runner's own folder below "
        "them is hidden.",
        json_schema_extra={"expected": "absolute paths separated by colons"},
    )
    runner_heartbeat_every: Seconds = Field(
        10.0,
        ge=0.1,
        le=_HOUR,
        description="Time between two heartbeats of each agent, varied by up to a tenth; at most a third of "
        "TASKHERD_AGENT_LOST_AFTER.",
    )
    runner_drain: Drain = Field(
        "keep",
        description="What a runner does with its agents when it is told to stop. keep: they go on, and the next runner "
        "adopts them. pause: it pauses them and has them started again, for containers, in which no agent outlives the "
        "runner; the image sets this. wait:DURATION: the same, after waiting up to that long for those that work. The "
        "orchestrator must wait longer than this duration and TASKHERD_GRACE together.",
        json_schema_extra={"expected": "keep, pause, or wait: and a duration, such as wait:10m"},
    )
    runner_buffer_most: int = Field(
        64 * 1024 * 1024,
        ge=1024 * 1024,
        le=_MAX_BYTES,
        description="Bytes of unsent reports that a runner keeps while the broker is unreachable; at the limit it "
        "stops reading agent output.",
    )
    agent_api_url: str = Field(
        "http://127.0.0.1:7080",
        pattern=r"^https?://[^\s/]+",
        description="URL of the API that runners pass to agents; it must be reachable from where the agents run.",
        json_schema_extra={"expected": "http://host:port or https://host"},
    )

    ops_host: str = Field(
        "127.0.0.1", min_length=1, description="Address that /livez, /readyz and /metrics are served on."
    )
    ops_port: int = Field(
        9590,
        ge=0,
        le=65_535,
        description="Port that /livez, /readyz and /metrics are served on; 0: any free port. If it is not set, the "
        "worker uses 9590, the API 9591 and the runner 9592.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="Format of the logs; auto: console on a terminal, else JSON."
    )
    tracing: Literal["off", "otlp"] = Field(
        "off",
        description="Whether to send OpenTelemetry spans (otlp); OpenTelemetry's own OTEL_… variables name the "
        "collector. Needs the extra `otel`.",
    )
    failpoint: str = Field(
        "",
        pattern=r"^([a-z0-9_.-]+:(kill|stop))?$",
        description="For tests: a failpoint at which the process kills (SIGKILL) or freezes (SIGSTOP) itself.",
        json_schema_extra={"expected": "NAME:kill or NAME:stop"},
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        pairs = (("request_backoff_first", "request_backoff_most"), ("batch_most", "prefetch"))
        for lower, upper in pairs:
            if getattr(self, lower) > getattr(self, upper):
                message = f"{lower} {getattr(self, lower):g} > {upper} {getattr(self, upper):g}"
                raise ValueError(message)
        return self

    def ops_port_or(self, default: int) -> int:
        """Return the operations port, or the process's own ``default`` if the setting is not set."""
        return self.ops_port if "ops_port" in self.model_fields_set else default

    @property
    def cors_origins(self) -> tuple[str, ...]:
        """The origins whose web pages may call the API."""
        return tuple(origin.strip() for origin in self.api_cors_origins.split(",") if origin.strip())

    @property
    def trusted_proxies(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks of the trusted proxies."""
        return parse_networks(self.api_trusted_proxies)

    @property
    def trusted_command_senders(self) -> frozenset[str]:
        """The users whose commands count; empty: any."""
        return parse_senders(self.command_senders)

    @property
    def sender_pools(self) -> Mapping[str, frozenset[str] | None]:
        """The pools of each user whose reports and claims count, None for all; empty: any user, any pool."""
        return parse_sender_pools(self.report_senders)

    @property
    def secret_keys(self) -> tuple[str, ...]:
        """The keys in order: the first signs, all of them verify."""
        return tuple(key.strip() for key in self.secret_key.split(",") if key.strip())

    @property
    def drain_wait(self) -> float | None:
        """Seconds that a stopping runner waits for working agents before it pauses them; None: it leaves them alone."""
        if self.runner_drain == "keep":
            return None
        return 0.0 if self.runner_drain == "pause" else parse(self.runner_drain.partition(":")[2])

    @property
    def installation(self) -> str:
        """A short digest of the broker's address and the AMQP prefix, equal in all processes that work together."""
        parts = f"{urls.broker_address(self.amqp_url)}\n{self.amqp_prefix}"
        return blake2b(parts.encode(), digest_size=_INSTALLATION_BYTES).hexdigest()

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that must not appear in any log, event, header or error."""
        passwords = [urls.password(url) for url in (self.database_url, self.database_read_url, self.amqp_url)]
        return (*self.secret_keys, *(password for password in passwords if password))
