"""Log entries are single lines without secrets and control characters."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from taskherd.observability import logs

SECRET = "hunter2-hunter2"


class Terminal(io.StringIO):
    """A stream that reports to be a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def logged(stream: io.StringIO) -> dict[str, Any]:
    """Return the only JSON line in ``stream``."""
    (line,) = stream.getvalue().splitlines()
    entry: dict[str, Any] = json.loads(line)
    return entry


def test_an_entry_is_one_line_of_json_with_the_context() -> None:
    """Without a terminal, an entry is one line of JSON with time, level, logger and the bound context."""
    stream = io.StringIO()
    logs.configure("info", "auto", stream=stream)
    with structlog.contextvars.bound_contextvars(task_id="t-1"):
        structlog.get_logger("flow").info("batch applied", size=3)
    entry = logged(stream)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {"event": "batch applied", "size": 3, "task_id": "t-1", "level": "info", "logger": "flow"}


def test_a_short_secret_is_hidden_only_in_urls() -> None:
    """A very short secret does not garble other texts; in a URL it is hidden."""
    stream = io.StringIO()
    logs.configure("info", "json", secrets=["g"], stream=stream)
    structlog.get_logger("app").info("connecting", url="amqp://g:g@127.0.0.1/")
    entry = logged(stream)
    assert entry["event"] == "connecting"
    assert ":g@" not in entry["url"]


def test_standard_library_logs_have_the_same_format() -> None:
    """Entries that libraries log through ``logging`` have the same format, and hide the same secrets."""
    stream = io.StringIO()
    logs.configure("info", "json", secrets=[SECRET], stream=stream)
    logging.getLogger("aiormq").warning("no route to %s\n", f"amqp://u:{SECRET}@mq/")
    entry = logged(stream)
    assert (entry["event"], entry["logger"], entry["level"]) == (
        "no route to amqp://u:********@mq/\\n",
        "aiormq",
        "warning",
    )


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_are_hidden(form: str) -> None:
    """A secret is hidden as a value, within a value, in a URL, under a name like ``token``, and in a traceback."""
    stream = io.StringIO()
    logs.configure("info", form, secrets=[SECRET], stream=stream)
    log = structlog.get_logger()
    try:
        int(f"bad key {SECRET}")
    except ValueError:
        log.exception("failed", url="postgresql://u:other-pass@db/x", nested={"agent_token": "tok-1", "list": [SECRET]})
    shown = stream.getvalue()
    assert "ValueError" in shown
    assert all(secret not in shown for secret in (SECRET, "other-pass", "tok-1"))


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("char", ["\x1b", "\x00", "\r", "\n", "\x9b", "\u2028", "\u202e", "\ud800"])
def test_control_characters_are_escaped(form: str, char: str) -> None:
    """External text cannot move a terminal's cursor, start a new line or change the text direction."""
    stream = io.StringIO()
    logs.configure("info", form, stream=stream)
    structlog.get_logger().info("text", text=f"a{char}b")
    line = stream.getvalue()
    assert line.endswith("\n")
    assert line[:-1].isprintable()


def test_a_long_text_is_truncated() -> None:
    """The length of a logged text is limited."""
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    structlog.get_logger().info("text", text="x" * 1_000_000)
    assert len(logged(stream)["text"]) == logs.MAX_TEXT


def test_the_level_filters() -> None:
    """Entries below the level are not logged."""
    stream = io.StringIO()
    logs.configure("warning", "json", stream=stream)
    structlog.get_logger().info("quiet")
    assert not stream.getvalue()


def test_a_terminal_gets_the_console_format() -> None:
    """On a terminal, ``auto`` selects the console format."""
    stream = Terminal()
    logs.configure("info", "auto", stream=stream)
    structlog.get_logger().info("hello")
    assert "hello" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_python_warnings_are_logged() -> None:
    """A warning, such as that of an unsupported library version, is logged in the same format."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure("info", "json", stream=stream)
        warnings.warn("aiormq 8 is outside aiormq>=7.2.4,<7.3", RuntimeWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    entry = logged(stream)
    assert (entry["level"], entry["logger"]) == ("warning", "py.warnings")
    assert "aiormq 8 is outside" in entry["event"]
