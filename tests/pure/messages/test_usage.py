"""Reports of usage: the bounds of their fields, and amounts of money that stay exact."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain import reports as domain
from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.report_json import canonical_json
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.reports import DecodedReport, decode_reports
from tests.pure.messages.samples import NOW, TASK

USAGE = {"type": "agent.usage", "task_id": TASK, "build_number": 1, "seq": 1}


def decoded(fields: dict[str, Any]) -> domain.AgentUsage:
    """Return the report of a body that must be valid."""
    (element,) = decode_reports(orjson.dumps({**USAGE, **fields}), NOW)
    assert isinstance(element, DecodedReport), element
    assert isinstance(element.report, domain.AgentUsage)
    return element.report


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"input_tokens": -1}, "input_tokens"),
        ({"output_tokens": 1.5}, "output_tokens"),
        ({"cache_read_tokens": "7"}, "cache_read_tokens"),
        ({"cache_write_tokens": True}, "cache_write_tokens"),
        ({"context_used": 2**53}, "context_used"),
        ({"context_size": -5}, "context_size"),
        ({"model": "m" * 129}, "model"),
        ({"model": 4}, "model"),
        ({"cost": "1.5 USD"}, "cost"),
        ({"cost": {"amount": "1.5"}}, "cost.currency"),
        ({"cost": {"currency": "USD"}}, "cost.amount"),
        ({"cost": {"amount": 1.5, "currency": "USD"}}, "cost.amount"),
        ({"cost": {"amount": "-1", "currency": "USD"}}, "cost.amount"),
        ({"cost": {"amount": "+1", "currency": "USD"}}, "cost.amount"),
        ({"cost": {"amount": "1e3", "currency": "USD"}}, "cost.amount"),
        ({"cost": {"amount": ".5", "currency": "USD"}}, "cost.amount"),
        ({"cost": {"amount": "1.", "currency": "USD"}}, "cost.amount"),
        ({"cost": {"amount": "1\n", "currency": "USD"}}, "cost.amount"),
        ({"cost": {"amount": "٣", "currency": "USD"}}, "cost.amount"),
        ({"cost": {"amount": "1" * 13, "currency": "USD"}}, "cost.amount"),
        ({"cost": {"amount": f"1.{'1' * 10}", "currency": "USD"}}, "cost.amount"),
        ({"cost": {"amount": "1", "currency": "usd"}}, "cost.currency"),
        ({"cost": {"amount": "1", "currency": "DOLLAR"}}, "cost.currency"),
        ({"cost": {"amount": "1", "currency": "ZZZ"}}, "cost.currency"),
    ],
)
def test_bounds(fields: dict[str, Any], named: str) -> None:
    """A counter, name or amount outside the contract is invalid, and the detail names the field."""
    (element,) = decode_reports(json.dumps({**USAGE, **fields}).encode(), NOW)
    assert isinstance(element, InvalidMessage)
    assert element.reason is DeadLetterReason.INVALID
    assert f"{named}: " in element.detail


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": "m" * 128},
        {"input_tokens": 2**53 - 1, "context_used": 0},
        {"cost": {"amount": f"{'9' * 12}.{'9' * 9}", "currency": "JPY"}},
        {"cost": {"amount": "0", "currency": "XTS"}},
    ],
)
def test_the_bounds_themselves_are_valid(fields: dict[str, Any]) -> None:
    """The greatest and smallest values of the contract are valid, and a report that says nothing."""
    assert decoded(fields).task_id == UUID(TASK)


def test_each_number_is_in_its_field() -> None:
    """What an agent reports is what is counted, each for itself; what it leaves out is not known."""
    names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "context_used", "context_size")
    report = decoded({**{name: number for number, name in enumerate(names)}, "model": "sonnet"})
    assert [getattr(report, name) for name in names] == [0, 1, 2, 3, 4, 5]
    assert (report.model, report.cost) == ("sonnet", None)
    assert {getattr(decoded({}), name) for name in names} == {None}


def test_a_cost_is_an_amount_of_a_currency() -> None:
    """Both are kept."""
    assert decoded({"cost": {"amount": "1.50", "currency": "JPY"}}).cost == domain.Cost(Decimal("1.5"), "JPY")


def test_a_model_without_a_name_is_none() -> None:
    """An empty name, and one of control characters only, are no name; others lose their control characters."""
    assert [decoded({"model": name}).model for name in ("", " ", "\x00", "a\u202eb")] == [None, None, None, "ab"]


@given(st.integers(0, 10**12 - 1), st.none() | st.text("0123456789", min_size=1, max_size=9))
def test_an_amount_stays_exact(whole: int, fraction: str | None) -> None:
    """An amount is the decimal that was written, and its canonical form is one and the same for equal amounts."""
    text = str(whole) if fraction is None else f"{whole}.{fraction}"
    report = decoded({"cost": {"amount": text, "currency": "EUR"}})
    assert report.cost == domain.Cost(Decimal(text), "EUR")
    canonical = json.loads(canonical_json(report))["cost"]["amount"]
    assert Decimal(canonical) == Decimal(text)
    longer = decoded({"cost": {"amount": f"{whole}.{(fraction or '').ljust(9, '0')}", "currency": "EUR"}})
    assert canonical_json(longer) == canonical_json(report)
