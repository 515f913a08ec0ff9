"""Tables and lists of fields for terminals of any width."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.cells import cell_len

from taskherd.cli import tables, task_output
from taskherd.cli.output import age, print_failure, printable
from taskherd.cli.tables import COLORS, Column
from taskherd.client.errors import ClientError, ExitCode

COLUMNS = (
    Column("TASK"),
    Column("STATUS", colors=COLORS),
    Column("AGE", optional=2),
    Column("MESSAGE", optional=1, shortest=16),
)
LONG_NAME = "alice/" + "n" * 32
ROWS = [
    (LONG_NAME, "active", "3m", "Running the tests of everything that there is in this repository, " * 3),
    ("bob/wide", "error", "12d", "\u6f22\u5b57" * 40),
    ("bob/rtl", "paused", "2h", "\u05e2\u05d1\u05e8\u05d9\u05ea \u202egnp.exe\x1b[31m"),
]


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int | None) -> list[str]:
    """Return the lines of the table at a width of the terminal; None: of a pipe."""
    if width is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    tables.table(COLUMNS, ROWS)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_table_fits_and_names_are_complete(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Rows fit in the terminal, also with wide characters; names and statuses are never cut, controls are escaped."""
    lines = printed(capsys, monkeypatch, width)
    assert max(map(cell_len, lines)) <= width
    for line, (name, status, *_) in zip(lines[1:], ROWS, strict=True):
        assert line.split()[:2] == [name, status]
    assert ("MESSAGE" in lines[0], "AGE" in lines[0]) == (width > 60, width > 60)
    assert not {"\x1b", "\u202e"} & set("".join(lines))


def test_the_least_important_columns_go_first_and_names_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 66 columns a message of 16 fits, but no age; at 20, name and status are still complete."""
    assert printed(capsys, monkeypatch, 66)[0].split() == ["TASK", "STATUS", "MESSAGE"]
    lines = printed(capsys, monkeypatch, 20)
    assert lines[1].split() == [LONG_NAME, "active"]


def test_a_pipe_gets_whole_texts_without_colors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is searched with grep is neither cut nor colored."""
    text = "\n".join(printed(capsys, monkeypatch, None))
    assert "in this repository" in text
    assert "\u2026" not in text.splitlines()[3]
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("env", "is_terminal", "is_colored"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
    ],
)
def test_colors_are_for_terminals_that_show_them(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], *, is_terminal: bool, is_colored: bool
) -> None:
    """A pipe gets none; ``NO_COLOR`` and ``TERM=dumb`` turn them off."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    assert ("\x1b" in tables.colored("active", "green")) is is_colored


def task_document(name: str, status: str, state: str, message: str, **fields: Any) -> dict[str, Any]:
    """Return what a list shows of a task of alice that was made three days ago and updated five minutes ago."""
    now = datetime.now(UTC)
    return {
        "owner_name": "alice",
        "name": name,
        "status": status,
        "template_name": "claude",
        "created_at": (now - timedelta(days=3)).isoformat(),
        "updated_at": (now - timedelta(minutes=5)).isoformat(),
        "workspace_agent_health": None,
        "current_state": {"state": state, "message": message},
        **fields,
    }


STATES = {
    ("active", "working"): ("\x1b[32mactive\x1b[0m", "\x1b[32mworking\x1b[0m"),
    ("active", "idle"): ("\x1b[32mactive\x1b[0m", "\x1b[36midle\x1b[0m"),
    ("paused", "complete"): ("\x1b[34mpaused\x1b[0m", "\x1b[32mcomplete\x1b[0m"),
    ("error", "failed"): ("\x1b[31merror\x1b[0m", "\x1b[31mfailed\x1b[0m"),
    ("initializing", "later"): ("\x1b[33minitializing\x1b[0m", "later"),
}
"""Statuses and states of tasks, and how a terminal gets them: green, cyan, blue, red, yellow, or without a color."""


def test_states_of_tasks_are_colored_on_a_terminal_and_columns_are_aligned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only statuses, states and headings have a style, which has no width: the rest is the table without colors."""
    documents = [task_document(f"t{at}", *each, "error") for at, each in enumerate(STATES)]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    task_output.tasks(documents)
    plain = capsys.readouterr().out
    monkeypatch.delenv("NO_COLOR")
    task_output.tasks(documents)
    styled = capsys.readouterr().out
    assert re.sub(r"\x1b\[\d+m", "", styled) == plain
    headings, *rows = styled.splitlines()
    assert headings.startswith("\x1b[1mTASK\x1b[0m")
    assert [tuple(row.split()[1:3]) for row in rows] == list(STATES.values())
    assert not any("\x1b" in word for row in rows for word in row.split()[3:])
    assert len({line.index("  claude") for line in plain.splitlines()[1:]}) == 1


@pytest.mark.parametrize(
    ("stem", "headings", "labels"),
    [
        ("login", "TASK STATUS STATE UPDATED MESSAGE", {}),
        ("login", "TASK STATUS STATE UPDATED LABELS", {"repository": "acme/application", "team": "blue"}),
        ("n" * 30, "TASK STATUS STATE", {}),
    ],
    ids=["message", "labels", "long names"],
)
def test_a_list_of_tasks_can_be_read_at_60_columns(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stem: str,
    headings: str,
    labels: dict[str, str],
) -> None:
    """Messages and labels are cut, and columns left out for which there is no room; names and states are complete."""
    monkeypatch.setenv("COLUMNS", "60")
    texts = {
        "MESSAGE": "Running the tests of everything that there is",
        "LABELS": "repository=acme/application, team=blue",
    }
    working = task_document(f"{stem}-1", "active", "working", texts["MESSAGE"], labels=labels)
    paused = task_document(f"{stem}-2", "paused", "idle", "Waiting for what people say about the tests")
    task_output.tasks([working, paused])
    first, second, third = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, (first, second, third))) <= 60
    assert first.split() == headings.split()
    assert second.split()[:3] == [f"alice/{stem}-1", "active", "working"]
    assert third.split()[:3] == [f"alice/{stem}-2", "paused", "idle"]
    last = headings.rsplit(maxsplit=1)[-1]
    if last in texts:
        cell = second[first.index(last) :]
        assert (cell[-1], texts[last].startswith(cell[:-1]), len(cell) >= 15) == ("…", True, True)


def test_fields_continue_below_their_beginning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long or multi-line value is indented, so that it cannot pass for another field; words stay whole."""
    monkeypatch.setenv("COLUMNS", "40")
    tables.fields(("id", "x" * 60), ("empty", ""), ("prompt", "one two three four five six seven eight\nstatus active"))
    assert capsys.readouterr().out.splitlines() == [
        f"id      {'x' * 60}",
        "prompt  one two three four five six",
        "        seven eight",
        "        status active",
    ]


def test_the_next_command_stays_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However narrow the terminal is, it can be copied as a whole."""
    monkeypatch.setenv("COLUMNS", "40")
    command = f"taskherd task resume {LONG_NAME}"
    tables.fields(("message", "one two three four five six seven"), ("next", command))
    assert capsys.readouterr().out.splitlines()[-1] == f"next     {command}"


def test_a_list_shows_the_last_words_of_an_agent_that_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last line, instead of a message that repeats how it ended; a message that says what it did is kept."""
    monkeypatch.setenv("COLUMNS", "200")
    words, at = "Reading\nquota exceeded", "2026-11-26T12:00:00Z"
    agent_exit = {"why": "exited", "status": 3, "signal": None, "words": words, "at": at}
    for state, message, expected in (
        ("failed", "The agent ended with exit status 3.", "agent exited with status 3; quota exceeded"),
        ("working", "Running the tests", "agent exited with status 3; Running the tests"),
    ):
        task_output.tasks([task_document("login", "error", state, message, agent_exit=agent_exit)])
        assert capsys.readouterr().out.splitlines()[1].endswith(f"  {expected}")


def test_ages_have_one_unit() -> None:
    """The largest unit, rounded down; a time in the future, of a clock that differs, is 0s."""
    now = datetime(2026, 11, 26, 12, tzinfo=UTC)
    for ago, expected in ((0, "0s"), (59, "59s"), (60, "1m"), (3_599, "59m"), (7_200, "2h"), (86_400 * 5, "5d")):
        assert age(now - timedelta(seconds=ago), now) == expected
    assert age("2026-11-26T12:00:07.5Z", now) == "0s"


def test_printable_keeps_text_and_escapes_controls() -> None:
    """Emoji and joiners stay; escapes, bidirectional controls and surrogates are shown; white space is a space."""
    family = "\U0001f469\u200d\U0001f467"
    assert printable(f"a\tb\nc {family}") == f"a b c {family}"
    assert printable("\x1b[2J\u202e\ud800\x9b") == r"\x1b[2J\u202e\ud800\x9b"


def test_a_failure_keeps_the_lines_of_its_advice(capsys: pytest.CaptureFixture[str]) -> None:
    """Its message is one line, and what could control the terminal is escaped in both."""
    error = ClientError(ExitCode.USAGE, "it asks\n2 things", "choose one of:\nbeef  \x1b[2JWhy?\ncafe  What?")
    print_failure(error, about="alice/o\nne")
    assert capsys.readouterr().err.splitlines() == [
        "taskherd: alice/o ne: it asks 2 things",
        "  choose one of:",
        r"  beef  \x1b[2JWhy?",
        "  cafe  What?",
    ]
