"""Report outcomes and the reasons of dead letters: one list each, and nothing in them that does not occur."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import taskherd
from taskherd.domain.outcome import FOREIGN_REASONS, DeadLetterReason, ReportOutcome
from taskherd.messages import dead_letters
from taskherd.messages.dead_letters import MEANINGS
from taskherd.observability.metrics import Metrics

SOURCES = Path(taskherd.__file__).parent
ASYNCAPI = SOURCES.parents[1] / "docs" / "asyncapi.yaml"
LISTS = {SOURCES / "domain" / "outcome.py", SOURCES / "messages" / "dead_letters.py"}
"""Where reasons and outcomes are listed, which is no use of them."""


def used(*enums: str) -> set[str]:
    """The members of these enums that the code names, by the names under which modules import the enums."""
    return {
        node.attr
        for path in SOURCES.rglob("*.py")
        if path not in LISTS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in enums
    }


def shown(headers: dict[str, Any]) -> str:
    """The reason that ``taskherd dead`` shows for a letter that came with these headers."""
    message: Any = SimpleNamespace(headers=headers, message_id=None, exchange="e", routing_key="k", body=b"")
    return dead_letters.decode(message).reason


EMITTED = {DeadLetterReason[name] for name in used("DeadLetterReason") & set(DeadLetterReason.__members__)} | {
    outcome.dead_letter_reason for outcome in ReportOutcome if outcome.dead_letter_reason
}


def test_every_reason_is_emitted_or_the_brokers() -> None:
    """Each code is written by some part of taskherd, or it is shown for letters of others; none is both."""
    assert EMITTED.isdisjoint(FOREIGN_REASONS)
    assert set(DeadLetterReason) == EMITTED | FOREIGN_REASONS


@pytest.mark.parametrize("reason", sorted(FOREIGN_REASONS))
def test_the_brokers_reasons_are_shown_as_it_writes_them(reason: DeadLetterReason) -> None:
    """RabbitMQ's own reason is taken from ``x-death``; where that is missing too, it is unknown."""
    assert shown({} if reason is DeadLetterReason.UNKNOWN else {"x-death": [{"reason": reason.value}]}) == reason


def test_the_contract_names_exactly_these_reasons() -> None:
    """``docs/asyncapi.yaml`` lists every code once, and explains it."""
    schema = yaml.safe_load(ASYNCAPI.read_text(encoding="utf-8"))["components"]["schemas"]["DeadLetterReason"]
    assert sorted(schema["enum"]) == sorted(EMITTED | FOREIGN_REASONS)
    assert [line.split(":")[0] for line in schema["description"].splitlines()] == schema["enum"]
    assert list(MEANINGS) == list(DeadLetterReason)


def test_every_outcome_occurs_and_is_counted() -> None:
    """Each outcome is given to some report, under a label that the metric's description names, and to no other."""
    assert used("ReportOutcome") == set(ReportOutcome.__members__)
    labels = {outcome.metric for outcome in ReportOutcome}
    assert labels == {"applied", "unchanged", "stale", "parked", "tombstone", "conflict", "invalid"}
    (meaning,) = [each.meaning for each in Metrics().declared if each.name == "taskherd_reports_total"]
    assert labels <= set(meaning.replace(",", " ").replace(".", " ").split())


def test_what_is_refused_is_explained() -> None:
    """An outcome has a detail for people exactly where its report goes to the dead letters."""
    assert all(bool(outcome.detail) == bool(outcome.dead_letter_reason) for outcome in ReportOutcome)
