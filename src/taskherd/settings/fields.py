"""Every setting of taskherd: its name, default, bounds and what it is for."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from taskherd.settings import urls
from taskherd.settings.durations import Seconds

PREFIX = "TASKHERD_"
MIN_SECRET_KEY = 32
"""Characters of a secret key: 32 hexadecimal digits are 128 bits."""
_HOUR = 3600.0
_YEAR = 8784 * _HOUR


def _check_keys(keys: str) -> str:
    shortest = min((len(key.strip()) for key in keys.split(",")), default=0)
    if keys and shortest < MIN_SECRET_KEY:
        message = f"a key has only {shortest} characters"
        raise ValueError(message)
    return keys


DatabaseUrl = Annotated[str, AfterValidator(lambda url: urls.check_database(url) if url else url)]
AmqpUrl = Annotated[str, AfterValidator(lambda url: urls.check_amqp(url) if url else url)]
SecretKeys = Annotated[str, AfterValidator(_check_keys)]


class Settings(BaseSettings):
    """The settings, read from `TASKHERD_…` in the environment; use `load` to get plain errors."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, hide_input_in_errors=True, extra="forbid"
    )

    database_url: DatabaseUrl = Field(
        "",
        repr=False,
        description="Where PostgreSQL (15 or newer) is.",
        json_schema_extra={"secret": True, "expected": "postgresql://user:password@host:5432/database"},
    )
    amqp_url: AmqpUrl = Field(
        "",
        repr=False,
        description="Where RabbitMQ (4.0 or newer) is.",
        json_schema_extra={
            "secret": True,
            "expected": "amqp://user:password@host:5672/vhost, or amqps:// with the server's certificate checked",
        },
    )
    secret_key: SecretKeys = Field(
        "",
        repr=False,
        description="Keys that agent tokens are derived from, separated by commas: the first signs, all are accepted.",
        json_schema_extra={
            "secret": True,
            "expected": f"keys of at least {MIN_SECRET_KEY} characters, as `openssl rand -hex 32` prints one",
        },
    )
    amqp_prefix: str = Field(
        "taskherd",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
        description="What the names of exchanges and queues begin with.",
        json_schema_extra={"expected": "1 to 64 of the characters a-z 0-9 . _ -, the first a letter or digit"},
    )

    agent_lost_after: Seconds = Field(
        30.0, ge=1, le=_HOUR, description="Silence, all of it listened to, after which an agent has lost connection."
    )
    agent_connect_timeout: Seconds = Field(
        120.0, ge=1, le=_HOUR, description="How long a new agent may take until it is first heard."
    )
    mass_silence_hold: Seconds = Field(
        300.0, ge=0, le=_HOUR, description="How long the silence of most agents at once is not believed."
    )
    probe_every: Seconds = Field(
        1.0, ge=0.1, le=60, description="How often a worker probes whether reports are drained."
    )
    probe_timeout: Seconds = Field(
        5.0, ge=0.1, le=60, description="Time in which a probe must come back through the queue to call it drained."
    )

    request_ttl: Seconds = Field(
        600.0, ge=1, le=24 * _HOUR, description="After which an unanswered request is given up."
    )
    request_backoff_first: Seconds = Field(
        5.0, ge=0.1, le=_HOUR, description="Wait before a request is first repeated."
    )
    request_backoff_most: Seconds = Field(60.0, ge=0.1, le=_HOUR, description="Longest wait between two repeats.")
    runner_answer_timeout: Seconds = Field(
        60.0,
        ge=0.1,
        le=_HOUR,
        description="After which start and delete requests go to the pool of a silent runner too.",
    )
    build_timeout: Seconds = Field(
        1800.0, ge=1, le=24 * _HOUR, description="Silence after which a build under way counts as failed."
    )
    delete_backoff_most: Seconds = Field(
        _HOUR, ge=1, le=24 * _HOUR, description="Longest wait before a failed delete is asked for again."
    )
    send_mode: Literal["queue", "strict"] = Field(
        "queue", description="Whether an input for a busy task is queued, or refused as Coder's servers do."
    )

    parked_ttl: Seconds = Field(
        900.0, ge=1, le=24 * _HOUR, description="How long a report waits for its task's create."
    )
    parked_most: int = Field(1000, ge=1, le=100_000, description="Reports parked for one task.")
    command_memory: Seconds = Field(
        24 * _HOUR, ge=24 * _HOUR, le=_YEAR, description="How long a repeated command still gets its first reply."
    )
    history_retention: Seconds = Field(2160 * _HOUR, ge=24 * _HOUR, description="How long change events are kept.")
    log_retention: Seconds = Field(2160 * _HOUR, ge=24 * _HOUR, description="How long the tasks' logs are kept.")

    batch_most: int = Field(1000, ge=1, le=10_000, description="Deliveries in one batch.")
    batch_wait: Seconds = Field(0.0, ge=0, le=1, description="How long a batch waits to fill up.")
    prefetch: int = Field(4000, ge=1, le=65_535, description="Unacknowledged report deliveries a worker holds.")
    report_partitions: int = Field(1, ge=1, le=256, description="Queues that reports are spread over.")
    sweep_every: Seconds = Field(1.0, ge=0.05, le=60, description="How often timers are looked at.")
    relay_every: Seconds = Field(1.0, ge=0.05, le=60, description="How often unpublished events are looked for.")
    grace: Seconds = Field(25.0, ge=1, le=600, description="Time a process has to end after SIGTERM.")

    api_host: str = Field("127.0.0.1", min_length=1, description="Address that the API is served on.")
    api_port: int = Field(7080, ge=0, le=65_535, description="Port that the API is served on; 0 takes a free one.")
    api_nullable_ids: Literal["string", "object"] = Field(
        "string",
        description="Ids that may be absent: a string or null, as Coder's servers send them, or as on their page.",
    )
    api_cors_origins: str = Field(
        "",
        description="Origins whose pages may call the API, separated by commas; none: no other page may.",
        json_schema_extra={"expected": "origins such as https://example.com, or * for any"},
    )
    api_rate_limit: float = Field(
        100.0, ge=0, le=1_000_000, description="Requests a second that one user may make in the long run; 0: any."
    )
    api_rate_burst: int = Field(500, ge=1, le=1_000_000, description="Requests that one user may make at once.")
    api_command_timeout: Seconds = Field(
        10.0, ge=0.5, le=60, description="How long a write waits until the worker has committed it."
    )
    api_read_timeout: Seconds = Field(
        10.0, ge=0.5, le=300, description="Time in which a request's head, and then its body, must have come."
    )
    api_connections: int = Field(4000, ge=1, le=100_000, description="Connections that one API process serves.")
    api_list_most: int = Field(
        5000, ge=500, le=100_000, description="Tasks in the answer to a list that asks for no limit; the newest ones."
    )

    migrate: Literal["auto", "never"] = Field(
        "auto", description="Whether a worker brings an old schema up to date when it starts, or refuses it."
    )
    database_pool: int = Field(10, ge=2, le=200, description="Most database connections of one process.")

    runner_name: str = Field(
        "",
        pattern=r"^[a-z0-9-]{0,64}$",
        description="Name of this runner, the same after every restart; empty: made from the host's name.",
        json_schema_extra={"expected": "up to 64 of the characters a-z 0-9 -"},
    )
    runner_pool: str = Field(
        "default",
        pattern=r"^[a-z0-9-]{1,64}$",
        description="Pool that this runner takes tasks from; no runner may bear its name.",
        json_schema_extra={"expected": "1 to 64 of the characters a-z 0-9 -"},
    )
    runner_root: str = Field(
        ".taskherd/runner", min_length=1, description="Folder in which a runner keeps its tasks, for itself alone."
    )
    runner_cgroup: str = Field(
        "",
        description="Delegated cgroup v2 in which each agent gets its own; empty: limits are set by process.",
        json_schema_extra={"expected": "a path such as /sys/fs/cgroup/taskherd, or nothing"},
    )
    runner_heartbeat_every: Seconds = Field(
        10.0, ge=0.1, le=_HOUR, description="How often a runner says that its agents are alive, a tenth more or less."
    )
    runner_buffer_most: int = Field(
        64 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bytes of reports that a runner holds while the broker is away, before it follows no more output.",
    )
    agent_api_url: str = Field(
        "http://127.0.0.1:7080",
        pattern=r"^https?://[^\s/]+",
        description="Where agents find the API, as a runner tells them.",
        json_schema_extra={"expected": "http://host:port or https://host"},
    )

    ops_host: str = Field("127.0.0.1", min_length=1, description="Address of /livez, /readyz and /metrics.")
    ops_port: int = Field(
        9590,
        ge=0,
        le=65_535,
        description="Port of /livez, /readyz and /metrics; 0 takes a free one. Unless set, 9591 for the API.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="How logs are written; auto: console on a terminal, else JSON."
    )
    tracing: Literal["off", "otlp"] = Field(
        "off", description="Whether spans are sent to an OpenTelemetry collector, which OTEL_… variables name."
    )
    failpoint: str = Field(
        "",
        pattern=r"^([a-z0-9_.-]+:(kill|stop))?$",
        description="For tests: a place where the process kills (-9) or stops itself.",
        json_schema_extra={"expected": "NAME:kill or NAME:stop"},
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        pairs = (("request_backoff_first", "request_backoff_most"), ("batch_most", "prefetch"))
        for lower, upper in pairs:
            if getattr(self, lower) > getattr(self, upper):
                message = f"{lower} {getattr(self, lower):g} > {upper} {getattr(self, upper):g}"
                raise ValueError(message)
        return self

    def ops_port_of(self, default: int) -> int:
        """The operations port of a process whose own default this is."""
        return self.ops_port if "ops_port" in self.model_fields_set else default

    @property
    def cors_origins(self) -> tuple[str, ...]:
        """The origins whose pages may call the API."""
        return tuple(origin.strip() for origin in self.api_cors_origins.split(",") if origin.strip())

    @property
    def secret_keys(self) -> tuple[str, ...]:
        """The keys in order: the first signs, all of them verify."""
        return tuple(key.strip() for key in self.secret_key.split(",") if key.strip())

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every text that must appear in no log, event, header or error."""
        passwords = (urls.password(self.database_url), urls.password(self.amqp_url))
        return (*self.secret_keys, *(password for password in passwords if password))
