"""Settings of sessions: which of them are not in force, and how a role gets them."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import make_url

from taskherd.errors import Misconfigured
from taskherd.store.sessions import Deviation, Pooling, deviations, pooling_of, role_statements

SETTINGS = {"application_name": "taskherd", "statement_timeout": "4500ms", "timezone": "UTC", "jit": "off"}


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ({"statement_timeout": "4500", "jit": "off"}, []),
        ({"statement_timeout": "1", "jit": "off", "timezone": "CET", "application_name": ""}, []),
        ({"statement_timeout": "4501", "jit": "off"}, ["statement_timeout is 4501, not 4500ms"]),
        ({"statement_timeout": "0", "jit": "on"}, ["statement_timeout is 0, not 4500ms", "jit is on, not off"]),
        ({"statement_timeout": "-1", "jit": "off"}, ["statement_timeout is -1, not 4500ms"]),
        ({"jit": "off"}, ["statement_timeout is unknown, not 4500ms"]),
        ({"statement_timeout": "9", "jit": "1"}, ["jit is 1, not off"]),
    ],
)
def test_a_timeout_may_be_shorter_and_everything_else_is_equal(actual: dict[str, str], expected: list[str]) -> None:
    """What PgBouncer sets at startup is not compared; a timeout of 0 is none."""
    assert [str(each) for each in deviations(SETTINGS, actual)] == expected


def test_a_deviation_has_the_value_and_what_it_should_be() -> None:
    """In the order of the settings."""
    assert deviations(SETTINGS, {"jit": "on"}) == (
        Deviation("statement_timeout", "unknown", "4500ms"),
        Deviation("jit", "on", "off"),
    )


def test_a_role_gets_what_pgbouncer_does_not_set() -> None:
    """In one database, each setting by a statement; names may have quotes."""
    assert role_statements(SETTINGS, 'task"herd', "my db") == (
        """ALTER ROLE "task""herd" IN DATABASE "my db" SET statement_timeout = '4500ms'""",
        """ALTER ROLE "task""herd" IN DATABASE "my db" SET jit = 'off'""",
    )


def test_the_option_of_the_url_names_the_mode_of_pgbouncer() -> None:
    """It is taken out of the URL, of which everything else stays."""
    plain = make_url("postgresql://u@h/d?sslmode=require")
    assert pooling_of(plain) == (plain, Pooling.DIRECT)
    for mode in (Pooling.SESSION, Pooling.TRANSACTION):
        assert pooling_of(make_url(f"postgresql://u@h/d?pgbouncer={mode}&sslmode=require")) == (plain, mode)
    for other in ("direct", "statement", "SESSION"):
        with pytest.raises(Misconfigured, match=f"got pgbouncer={other}$"):
            pooling_of(make_url(f"postgresql://u@h/d?pgbouncer={other}"))
