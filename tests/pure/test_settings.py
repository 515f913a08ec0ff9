"""Settings are validated at start, and all errors are reported together."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd import durations
from taskherd.errors import Misconfigured
from taskherd.settings import Settings, describe, load, unknown_variables, urls, variable_of
from taskherd.settings.__main__ import table

KEY = "0123456789abcdef0123456789abcdef"
DATABASE = "postgresql://alice:s3cr3t-db@db.example:5432/herd"
AMQP = "amqp://alice:s3cr3t-mq@mq.example:5672/"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return an environment with the three required settings and no other ``TASKHERD_…`` variable."""
    for name in [name for name in os.environ if name.startswith("TASKHERD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TASKHERD_DATABASE_URL", DATABASE)
    monkeypatch.setenv("TASKHERD_AMQP_URL", AMQP)
    monkeypatch.setenv("TASKHERD_SECRET_KEY", KEY)
    return monkeypatch


def problems(*required: str) -> dict[str, str]:
    """Return the problems that ``load`` reports, by variable."""
    with pytest.raises(Misconfigured) as caught:
        load(*required)
    return dict(caught.value.wrong)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("10m", 600), ("24h", 86_400), ("1.5h", 5400), ("7", 7), (" 2 s ", 2), (0.25, 0.25)],
)
def test_a_duration_is_parsed(written: object, seconds: float) -> None:
    """A duration has a unit of ms, s, m or h, or is plain seconds."""
    assert durations.parse(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    ["", "s", "-1s", "1d", "1e3", "inf", "nan", "\u0661s", "10 m 3 s", None, True, -1, float("nan"), float("inf")],
)
def test_an_invalid_duration_is_rejected(written: object) -> None:
    """A value that is negative, infinite, in another unit or not a number is not a duration."""
    with pytest.raises(ValueError, match="not a duration"):
        durations.parse(written)


@given(st.integers(min_value=0, max_value=10**9))
def test_a_formatted_duration_can_be_parsed_again(milliseconds: int) -> None:
    """Every duration that is shown can be copied into an environment variable."""
    assert durations.parse(durations.render(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, rel=1e-5)


def test_every_duration_has_a_maximum(environment: pytest.MonkeyPatch) -> None:
    """A time that is so long ago can be computed; what is longer is refused at start, not when something is pruned."""
    limits = {
        name: max((each.le for each in field.metadata if hasattr(each, "le")), default=None)
        for name, field in Settings.model_fields.items()
        if any(getattr(each, "func", None) is durations.parse for each in field.metadata)
    }
    assert limits.keys() > {"history_retention", "log_retention", "deleted_retention", "action_retention"}
    assert [name for name, limit in limits.items() if limit is None] == []
    assert all(datetime.now(UTC) - timedelta(seconds=limit or 0) for limit in limits.values())
    for name in limits:
        environment.setenv(variable_of(name), "999999999999h")
    assert problems().keys() == {variable_of(name) for name in limits}


def test_every_number_has_a_maximum(environment: pytest.MonkeyPatch) -> None:
    """One that PostgreSQL has no type for is refused at start, not when a statement needs it."""
    numbers = [name for name, field in Settings.model_fields.items() if field.annotation is int]
    for name in numbers:
        environment.setenv(variable_of(name), str(2**63))
    assert "tasks_running_most" in numbers
    assert problems().keys() == {variable_of(name) for name in numbers}


def test_what_is_missing_is_named_beside_what_is_wrong(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that a second start does not find more; what is given by a file is not missing."""
    environment.delenv("TASKHERD_DATABASE_URL")
    environment.setenv("TASKHERD_AMQP_URL", "")
    environment.setenv("TASKHERD_PREFETCH", "many")
    assert problems().keys() == {"TASKHERD_PREFETCH", "TASKHERD_DATABASE_URL", "TASKHERD_AMQP_URL"}
    assert problems("secret_key").keys() == {"TASKHERD_PREFETCH"}
    environment.delenv("TASKHERD_SECRET_KEY")
    (tmp_path / "key").write_text(KEY)
    environment.setenv("TASKHERD_SECRET_KEY_FILE", str(tmp_path / "key"))
    assert problems("secret_key", "amqp_url").keys() == {"TASKHERD_PREFETCH", "TASKHERD_AMQP_URL"}


def test_settings_come_from_environment_variables(environment: pytest.MonkeyPatch) -> None:
    """A setting is read from the variable with its name in capitals; an empty variable counts as not set."""
    environment.setenv("TASKHERD_AGENT_LOST_AFTER", "1500ms")
    environment.setenv("TASKHERD_OPS_PORT", "0")
    environment.setenv("TASKHERD_GRACE", "")
    settings = load()
    assert (settings.agent_lost_after, settings.ops_port, settings.grace) == (1.5, 0, 25.0)


def test_all_problems_are_reported_at_once(environment: pytest.MonkeyPatch) -> None:
    """The error names every wrong setting, its problem and what was expected, and never quotes a secret."""
    environment.setenv("TASKHERD_DATABASE_URL", "mysql://alice:s3cr3t-db@db.example/herd")
    environment.setenv("TASKHERD_SECRET_KEY", "s3cr3t-key")
    environment.setenv("TASKHERD_GRACE", "soon")
    environment.setenv("TASKHERD_LOG_LEVEL", "loud")
    environment.setenv("TASKHERD_BATCH_MOST", "0")
    found = problems()
    assert found.keys() == {
        "TASKHERD_DATABASE_URL",
        "TASKHERD_SECRET_KEY",
        "TASKHERD_GRACE",
        "TASKHERD_LOG_LEVEL",
        "TASKHERD_BATCH_MOST",
    }
    assert "the scheme is mysql; expected postgresql://" in found["TASKHERD_DATABASE_URL"]
    assert "'soon' is wrong (not a duration); expected a duration such as 500ms" in found["TASKHERD_GRACE"]
    assert "expected one of debug, info, warning, error" in found["TASKHERD_LOG_LEVEL"]
    assert "expected a whole number, 1 to 10000" in found["TASKHERD_BATCH_MOST"]
    assert "s3cr3t" not in str(found)


def test_a_missing_required_setting_is_named(environment: pytest.MonkeyPatch) -> None:
    """A caller names the settings that it requires; all others may be missing."""
    environment.delenv("TASKHERD_AMQP_URL")
    environment.delenv("TASKHERD_SECRET_KEY")
    assert problems().keys() == {"TASKHERD_AMQP_URL", "TASKHERD_SECRET_KEY"}
    assert problems("amqp_url").keys() == {"TASKHERD_AMQP_URL"}
    assert load("database_url").database_url == DATABASE


def test_a_secret_can_be_read_from_a_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A ``_FILE`` variable names a file with the secret; surrounding whitespace is stripped."""
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    environment.delenv("TASKHERD_SECRET_KEY")
    environment.setenv("TASKHERD_SECRET_KEY_FILE", str(path))
    settings = load()
    assert settings.secret_keys == (KEY,)
    assert next(each.source for each in describe(settings) if each.variable == "TASKHERD_SECRET_KEY") == "file"


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "No such file"), (b"", "is empty"), (b"short", "5 characters"), (b"\xff", "UTF-8")]
)
def test_an_unusable_secret_file_is_named(
    environment: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    """If a secret file is missing, empty, not text or wrong, the error names the ``_FILE`` variable."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    environment.delenv("TASKHERD_SECRET_KEY")
    environment.setenv("TASKHERD_SECRET_KEY_FILE", str(path))
    found = problems()
    assert found.keys() == {"TASKHERD_SECRET_KEY_FILE"}
    assert problem in found["TASKHERD_SECRET_KEY_FILE"]


def test_a_secret_given_twice_is_rejected(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A secret given both as a value and as a file is rejected as ambiguous."""
    environment.setenv("TASKHERD_AMQP_URL_FILE", str(tmp_path / "url"))
    assert "expected only one of the two" in problems()["TASKHERD_AMQP_URL_FILE"]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("amqps://mq.example/?no_verify_ssl=1", "no_verify_ssl is not allowed"),
        ("amqps://mq.example/?NO_VERIFY_SSL", "no_verify_ssl is not allowed"),
        ("http://mq.example/", "the scheme is http"),
        ("amqp:///", "there is no host"),
        ("amqp://mq.example:99999/", "port is out of range"),
        ("mq.example", "the scheme is missing"),
    ],
)
def test_a_wrong_broker_url_is_rejected(environment: pytest.MonkeyPatch, url: str, problem: str) -> None:
    """A broker URL must have a host and must not disable the check of the server's certificate."""
    environment.setenv("TASKHERD_AMQP_URL", url)
    assert problem in problems()["TASKHERD_AMQP_URL"]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql:///herd", "there is no host"),
        ("postgresql://db.example", "there is no database name"),
        ("postgresql://db.example/herd?sslmod=require", "unknown option sslmod"),
        ("postgresql://db.example/herd?pgbouncer=statement", "pgbouncer is 'statement'"),
        ("sqlite:///herd", "the scheme is sqlite"),
    ],
)
def test_a_wrong_database_url_is_rejected(environment: pytest.MonkeyPatch, url: str, problem: str) -> None:
    """A database URL must be one that asyncpg accepts unchanged."""
    environment.setenv("TASKHERD_DATABASE_URL", url)
    assert problem in problems()["TASKHERD_DATABASE_URL"]


@pytest.mark.parametrize(
    ("lower", "upper"), [("BATCH_MOST", "PREFETCH"), ("REQUEST_BACKOFF_FIRST", "REQUEST_BACKOFF_MOST")]
)
def test_contradictory_settings_are_rejected(environment: pytest.MonkeyPatch, lower: str, upper: str) -> None:
    """A minimum above its maximum is rejected, and the error names both settings."""
    environment.setenv(f"TASKHERD_{lower}", "70")
    environment.setenv(f"TASKHERD_{upper}", "60")
    assert problems() == {f"TASKHERD_{lower}": f"larger than TASKHERD_{upper}; expected at most that"}


def test_an_unknown_variable_is_reported_with_the_most_similar_setting() -> None:
    """A misspelt variable is reported with the most similar setting; known variables are not reported."""
    unknown = unknown_variables(
        {"TASKHERD_AGENT_LOST_AFTR": "1s", "TASKHERD_QQ": "1", "TASKHERD_GRACE": "1s", "PATH": "/"}
    )
    assert {each.variable: each.nearest for each in unknown} == {
        "TASKHERD_AGENT_LOST_AFTR": "TASKHERD_AGENT_LOST_AFTER",
        "TASKHERD_QQ": None,
    }
    assert not unknown_variables({variable_of(name): "" for name in Settings.model_fields})


def test_secrets_are_never_shown() -> None:
    """Neither the output of ``taskherd config`` nor a printed ``Settings`` contains a password or key."""
    settings = load()
    shown = repr(describe(settings)) + repr(settings) + str(settings)
    assert all(secret not in shown for secret in (KEY, "s3cr3t-db", "s3cr3t-mq"))
    assert f"alice:{urls.HIDDEN}@db.example:5432/herd" in shown
    assert set(settings.secrets) == {KEY, "s3cr3t-db", "s3cr3t-mq"}


def test_secret_keys_can_be_rotated(environment: pytest.MonkeyPatch) -> None:
    """Several keys are accepted, in order; each must have the minimum length."""
    other = KEY[::-1]
    environment.setenv("TASKHERD_SECRET_KEY", f"{KEY}, {other}")
    assert load().secret_keys == (KEY, other)
    environment.setenv("TASKHERD_SECRET_KEY", f"{KEY},short")
    assert "a key has only 5 characters" in problems()["TASKHERD_SECRET_KEY"]


def test_every_setting_is_documented() -> None:
    """The documentation's table lists every setting with its accepted values and description."""
    lines = table().splitlines()[2:]
    assert len(lines) == len(Settings.model_fields)
    assert all(all(cell.strip() for cell in line.split(" | ")[2:]) for line in lines)


def test_only_durations_are_documented_as_durations() -> None:
    """A number that is not a time, such as a rate, is documented as a number and shown without a unit."""
    rows = {line.split("`")[1]: line for line in table().splitlines()[2:]}
    assert "| `100` | a number, 0 to 1000000 |" in rows["TASKHERD_API_RATE_LIMIT"]
    assert "| `30s` | a duration such as" in rows["TASKHERD_AGENT_LOST_AFTER"]
    assert rows["TASKHERD_AGENT_LOST_AFTER"].count(", 1s to 1h |") == 1


def test_a_rate_is_not_read_as_a_duration(environment: pytest.MonkeyPatch) -> None:
    """A duration is rejected for a setting that is a number."""
    environment.setenv("TASKHERD_API_RATE_LIMIT", "100s")
    assert problems()["TASKHERD_API_RATE_LIMIT"].endswith("; expected a number, 0 to 1000000")


@pytest.mark.parametrize(
    ("written", "wait"),
    [("keep", None), ("pause", 0.0), ("wait:10m", 600.0), ("wait:90", 90.0), ("wait:24h", 86_400.0)],
)
def test_a_drain_keeps_pauses_or_waits_first(environment: pytest.MonkeyPatch, written: str, wait: float | None) -> None:
    """``drain_wait`` is the time to wait before agents are paused, or None if they go on."""
    environment.setenv("TASKHERD_RUNNER_DRAIN", written)
    assert load().drain_wait == wait


@pytest.mark.parametrize("written", ["stop", "wait", "wait:", "wait:soon", "wait:0s", "wait:25h", "pause:10m", "KEEP"])
def test_another_drain_is_refused(environment: pytest.MonkeyPatch, written: str) -> None:
    """The error says what is expected."""
    environment.setenv("TASKHERD_RUNNER_DRAIN", written)
    assert "expected keep, pause, or wait: and a duration" in problems()["TASKHERD_RUNNER_DRAIN"]


def test_runners_keep_their_agents_by_default() -> None:
    """On a machine, agents outlive the runner; the image sets another default for containers."""
    assert load().drain_wait is None


def test_what_is_expected_names_both_limits(environment: pytest.MonkeyPatch) -> None:
    """A limit that is itself excluded is named, too, in the error as in the documentation."""
    environment.setenv("TASKHERD_API_ACTION_RATE", "0")
    assert problems()["TASKHERD_API_ACTION_RATE"].endswith("expected a number above 0, up to 10000")
    environment.delenv("TASKHERD_API_ACTION_RATE")
    assert not [info.variable for info in describe(Settings()) if ", to" in info.expected or ",  " in info.expected]
