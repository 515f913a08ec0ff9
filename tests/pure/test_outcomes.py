"""Report outcomes and dead-letter reasons: one list of each, without entries that do not occur."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import taskherd
from taskherd.domain.outcome import EXTERNAL_REASONS, DeadLetterReason, ReportOutcome
from taskherd.messages import dead_letters
from taskherd.messages.dead_letters import MEANINGS
from taskherd.observability.metrics import Metrics

SOURCES = Path(taskherd.__file__).parent
ASYNCAPI = SOURCES.parents[1] / "docs" / "asyncapi.yaml"
LISTS = {SOURCES / "domain" / "outcome.py", SOURCES / "messages" / "dead_letters.py"}
"""The modules that define or describe them; a name in these does not count as a use."""


def used_members(*enums: str) -> set[str]:
    """Return the members of these enums that the code uses."""
    return {
        node.attr
        for path in SOURCES.rglob("*.py")
        if path not in LISTS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in enums
    }


def listed_reason(headers: dict[str, Any]) -> str:
    """Return the reason that ``taskherd dead`` shows for a dead letter with these headers."""
    message: Any = SimpleNamespace(
        headers=headers, message_id=None, sender=None, exchange="e", routing_key="k", body=b""
    )
    return dead_letters.decode(message).reason


EMITTED = {DeadLetterReason[name] for name in used_members("DeadLetterReason") & set(DeadLetterReason.__members__)} | {
    outcome.dead_letter_reason for outcome in ReportOutcome if outcome.dead_letter_reason
}


def test_every_reason_is_emitted_by_taskherd_or_by_the_broker() -> None:
    """Each code belongs to one of the two, none to both."""
    assert EMITTED.isdisjoint(EXTERNAL_REASONS)
    assert set(DeadLetterReason) == EMITTED | EXTERNAL_REASONS


@pytest.mark.parametrize("reason", sorted(EXTERNAL_REASONS))
def test_the_brokers_reasons_are_shown_unchanged(reason: DeadLetterReason) -> None:
    """RabbitMQ's reason is read from ``x-last-death-reason``; without that header the reason is unknown."""
    assert listed_reason({} if reason is DeadLetterReason.UNKNOWN else {"x-last-death-reason": reason.value}) == reason


def test_the_contract_lists_exactly_these_reasons() -> None:
    """``docs/asyncapi.yaml`` lists and explains every code once."""
    schema = yaml.safe_load(ASYNCAPI.read_text(encoding="utf-8"))["components"]["schemas"]["DeadLetterReason"]
    assert sorted(schema["enum"]) == sorted(EMITTED | EXTERNAL_REASONS)
    assert [line.split(":")[0] for line in schema["description"].splitlines()] == schema["enum"]
    assert list(MEANINGS) == list(DeadLetterReason)


def test_every_outcome_occurs_and_is_counted() -> None:
    """The code uses every outcome, and the metric's description names every label."""
    assert used_members("ReportOutcome") == set(ReportOutcome.__members__)
    labels = {outcome.metric for outcome in ReportOutcome}
    assert labels == {"applied", "unchanged", "stale", "parked", "refused", "tombstone", "conflict", "invalid"}
    (meaning,) = [metric.help for metric in Metrics().declared if metric.name == "taskherd_reports_total"]
    assert labels <= set(meaning.replace(",", " ").replace(".", " ").split())


def test_rejected_reports_have_an_explanation() -> None:
    """An outcome has a detail if and only if its report becomes a dead letter."""
    assert all(bool(outcome.detail) == bool(outcome.dead_letter_reason) for outcome in ReportOutcome)


def test_an_outcome_has_its_metric_and_what_a_dead_letter_says() -> None:
    """One that is no dead letter has no reason, and nothing to explain."""
    conflict, stale = ReportOutcome.CONFLICT, ReportOutcome.STALE
    assert (conflict.metric, conflict.dead_letter_reason) == ("conflict", DeadLetterReason.BUILD_CONFLICT)
    assert conflict.detail == "The worker requested another transition under this build number."
    assert (stale.metric, stale.dead_letter_reason, stale.detail) == ("stale", None, "")
