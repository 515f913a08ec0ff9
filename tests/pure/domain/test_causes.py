"""Causes in words: every type of message and every finding of the worker has a text, and names who acted."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from taskherd.domain import causes
from taskherd.domain.commands import Command
from taskherd.domain.reports import ExitReason, InterruptOutcome, Report
from taskherd.domain.request_values import RequestState
from taskherd.domain.view import EndedAgent


def test_every_type_has_words() -> None:
    """A new command or report needs a text."""
    assert {each.type for each in get_args(Command)} == set(causes.COMMANDS)
    assert {each.type for each in get_args(Report)} == set(causes.REPORTS)


def test_every_finding_has_words() -> None:
    """A new finding of the worker needs a text: the findings are those that the source names."""
    root = Path(causes.__file__).parents[1]
    source = "".join(path.read_text() for path in (root / "domain" / "task_update.py", root / "worker" / "save.py"))
    found = set(re.findall(r'"((?:agent|build|runner|task)\.[a-z_]+)"', source))
    assert found == set(causes.FINDINGS)


def test_a_cause_names_who_acted() -> None:
    """A command begins with its actor, an end of an agent says how; what is not known is named as it is."""
    ended = EndedAgent(ExitReason.EXITED, 3, None, "", datetime(2026, 1, 1, tzinfo=UTC))
    assert causes.describe("command", "task.pause", "bob") == "bob paused the task"
    assert causes.describe("command", "task.pause", "") == "somebody paused the task"
    assert causes.describe("command", "task.split", "bob") == "bob sent task.split"
    assert causes.describe("report", "agent.exit", "", ended) == "the agent exited with status 3"
    assert causes.describe("report", "agent.exit", "") == "the end of the agent was reported"
    assert causes.describe("report", "app.status", "", ended) == "the agent's state was reported"
    assert causes.describe("report", "app.status", "", outcome="open") == "the agent's state was reported"
    assert causes.describe("sweep", "agent.dreams", "") == "agent.dreams"


def test_what_became_of_an_interrupt_has_words() -> None:
    """The report about an interrupt is described by its outcome, and a send that interrupted the agent as one."""
    texts = {causes.describe("report", "agent.interrupted", "", outcome=each) for each in InterruptOutcome}
    assert len(texts) == len(InterruptOutcome)
    assert causes.describe("report", "agent.interrupted", "", outcome="failed") == "the interrupt failed"
    assert causes.describe("report", "agent.interrupted", "", outcome="?") == causes.REPORTS["agent.interrupted"]
    assert causes.describe("command", "task.send", "bob", steers=True) == "bob interrupted the agent and sent an input"


def test_requests_of_agents_have_words() -> None:
    """A report says what became of the request, and an answer who answered what, whether it was an input or not."""
    texts = {causes.describe("report", "agent.request", "", outcome=each, request="Run make") for each in RequestState}
    assert len(texts) == len(RequestState)
    assert all("“Run make”" in text for text in texts)
    assert causes.describe("report", "agent.request", "", outcome="?") == causes.REPORTS["agent.request"]
    for command in ("task.answer", "task.send"):
        words = causes.describe("command", command, "bob", request="Which?", answer="core")
        assert words == "bob answered “Which?”: core"
    assert causes.describe("command", "task.answer", "", request="", answer="") == "somebody answered “”: "
