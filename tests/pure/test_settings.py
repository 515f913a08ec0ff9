"""The settings are validated at start, and all that is wrong is named at once."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.errors import Misconfigured
from taskherd.settings import Settings, describe, durations, load, unknown_variables, urls, variable_of
from taskherd.settings.__main__ import table

KEY = "0123456789abcdef0123456789abcdef"
DATABASE = "postgresql://alice:s3cr3t-db@db.example:5432/herd"
AMQP = "amqp://alice:s3cr3t-mq@mq.example:5672/"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with the three needed settings and no other of ours."""
    for name in [name for name in os.environ if name.startswith("TASKHERD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TASKHERD_DATABASE_URL", DATABASE)
    monkeypatch.setenv("TASKHERD_AMQP_URL", AMQP)
    monkeypatch.setenv("TASKHERD_SECRET_KEY", KEY)
    return monkeypatch


def wrong(*needs: str) -> dict[str, str]:
    """What `load` says is wrong, by variable."""
    with pytest.raises(Misconfigured) as caught:
        load(*needs)
    return dict(caught.value.wrong)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("10m", 600), ("24h", 86_400), ("1.5h", 5400), ("7", 7), (" 2 s ", 2), (0.25, 0.25)],
)
def test_a_duration_is_read_as_people_write_it(written: object, seconds: float) -> None:
    """A duration has a unit of ms, s, m or h, or is plain seconds."""
    assert durations.parse(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    ["", "s", "-1s", "1d", "1e3", "inf", "nan", "\u0661s", "10 m 3 s", None, True, -1, float("nan"), float("inf")],
)
def test_what_is_no_duration_is_refused(written: object) -> None:
    """What is negative, without end, of another unit or no number is no duration."""
    with pytest.raises(ValueError, match="not a duration"):
        durations.parse(written)


@given(st.integers(min_value=0, max_value=10**9))
def test_a_duration_shown_is_read_back_as_itself(milliseconds: int) -> None:
    """Whatever duration we show can be pasted back into the environment."""
    assert durations.parse(durations.render(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, rel=1e-5)


def test_the_environment_is_read(environment: pytest.MonkeyPatch) -> None:
    """A setting comes from the variable of its name in capitals; one that is empty is as if not set."""
    environment.setenv("TASKHERD_AGENT_LOST_AFTER", "1500ms")
    environment.setenv("TASKHERD_OPS_PORT", "0")
    environment.setenv("TASKHERD_GRACE", "")
    settings = load()
    assert (settings.agent_lost_after, settings.ops_port, settings.grace) == (1.5, 0, 25.0)


def test_all_that_is_wrong_is_named_at_once(environment: pytest.MonkeyPatch) -> None:
    """One start names every wrong setting, its problem and what was expected; a secret value is never repeated."""
    environment.setenv("TASKHERD_DATABASE_URL", "mysql://alice:s3cr3t-db@db.example/herd")
    environment.setenv("TASKHERD_SECRET_KEY", "s3cr3t-key")
    environment.setenv("TASKHERD_GRACE", "soon")
    environment.setenv("TASKHERD_LOG_LEVEL", "loud")
    environment.setenv("TASKHERD_BATCH_MOST", "0")
    found = wrong()
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


def test_what_is_needed_and_missing_is_named(environment: pytest.MonkeyPatch) -> None:
    """A command names what it needs; what it does not need may be missing."""
    environment.delenv("TASKHERD_AMQP_URL")
    environment.delenv("TASKHERD_SECRET_KEY")
    assert wrong().keys() == {"TASKHERD_AMQP_URL", "TASKHERD_SECRET_KEY"}
    assert wrong("amqp_url").keys() == {"TASKHERD_AMQP_URL"}
    assert load("database_url").database_url == DATABASE


def test_a_secret_may_come_from_a_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `_FILE` variable gives the path of the secret, whose surrounding space does not count."""
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
def test_a_secret_file_that_can_not_be_used_is_named(
    environment: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    """A secret file that is missing, empty, no text or holds a wrong value is named by its own variable."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    environment.delenv("TASKHERD_SECRET_KEY")
    environment.setenv("TASKHERD_SECRET_KEY_FILE", str(path))
    found = wrong()
    assert found.keys() == {"TASKHERD_SECRET_KEY_FILE"}
    assert problem in found["TASKHERD_SECRET_KEY_FILE"]


def test_a_secret_comes_from_one_place(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A secret given as a value and as a file is refused: nobody could say which holds."""
    environment.setenv("TASKHERD_AMQP_URL_FILE", str(tmp_path / "url"))
    assert "expected only one of the two" in wrong()["TASKHERD_AMQP_URL_FILE"]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("amqps://mq.example/?no_verify_ssl=1", "no_verify_ssl is not allowed"),
        ("amqps://mq.example/?NO_VERIFY_SSL", "no_verify_ssl is not allowed"),
        ("http://mq.example/", "the scheme is http"),
        ("amqp:///", "there is no host"),
        ("amqp://mq.example:99999/", "ort out of range"),
        ("mq.example", "the scheme is missing"),
    ],
)
def test_a_wrong_broker_url_is_refused(environment: pytest.MonkeyPatch, url: str, problem: str) -> None:
    """A broker URL must have a host, and must not switch the check of the server's certificate off."""
    environment.setenv("TASKHERD_AMQP_URL", url)
    assert problem in wrong()["TASKHERD_AMQP_URL"]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql:///herd", "there is no host"),
        ("postgresql://db.example", "there is no database name"),
        ("postgresql://db.example/herd?sslmod=require", "unknown option sslmod"),
        ("sqlite:///herd", "the scheme is sqlite"),
    ],
)
def test_a_wrong_database_url_is_refused(environment: pytest.MonkeyPatch, url: str, problem: str) -> None:
    """A database URL must be one that asyncpg can use as it is written."""
    environment.setenv("TASKHERD_DATABASE_URL", url)
    assert problem in wrong()["TASKHERD_DATABASE_URL"]


@pytest.mark.parametrize(
    ("lower", "upper"), [("BATCH_MOST", "PREFETCH"), ("REQUEST_BACKOFF_FIRST", "REQUEST_BACKOFF_MOST")]
)
def test_settings_that_do_not_fit_together_are_refused(environment: pytest.MonkeyPatch, lower: str, upper: str) -> None:
    """A bound that could never be reached is refused, naming both settings."""
    environment.setenv(f"TASKHERD_{lower}", "70")
    environment.setenv(f"TASKHERD_{upper}", "60")
    assert wrong() == {f"TASKHERD_{lower}": f"larger than TASKHERD_{upper}; expected at most that"}


def test_an_unknown_variable_is_told_with_the_nearest_name() -> None:
    """A misspelt variable is told with the setting it was perhaps meant to be, and one that is known is not told."""
    told = unknown_variables(
        {"TASKHERD_AGENT_LOST_AFTR": "1s", "TASKHERD_QQ": "1", "TASKHERD_GRACE": "1s", "PATH": "/"}
    )
    assert {each.variable: each.nearest for each in told} == {
        "TASKHERD_AGENT_LOST_AFTR": "TASKHERD_AGENT_LOST_AFTER",
        "TASKHERD_QQ": None,
    }
    assert not unknown_variables({variable_of(name): "" for name in Settings.model_fields})


def test_secrets_are_never_shown() -> None:
    """Neither what `taskherd config` shows nor a printed `Settings` holds a password or key."""
    settings = load()
    shown = repr(describe(settings)) + repr(settings) + str(settings)
    assert all(secret not in shown for secret in (KEY, "s3cr3t-db", "s3cr3t-mq"))
    assert f"alice:{urls.HIDDEN}@db.example:5432/herd" in shown
    assert set(settings.secrets) == {KEY, "s3cr3t-db", "s3cr3t-mq"}


def test_keys_rotate(environment: pytest.MonkeyPatch) -> None:
    """Of several keys the first signs and all are accepted; none of them may be short."""
    other = KEY[::-1]
    environment.setenv("TASKHERD_SECRET_KEY", f"{KEY}, {other}")
    assert load().secret_keys == (KEY, other)
    environment.setenv("TASKHERD_SECRET_KEY", f"{KEY},short")
    assert "a key has only 5 characters" in wrong()["TASKHERD_SECRET_KEY"]


def test_every_setting_is_documented() -> None:
    """Every setting is in the table of the documentation, with what it may be and what it is for."""
    lines = table().splitlines()[2:]
    assert len(lines) == len(Settings.model_fields)
    assert all(all(cell.strip() for cell in line.split(" | ")[2:]) for line in lines)
