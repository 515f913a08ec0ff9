"""What is counted of an agent's words about its usage, what is reported of it, and what the next runner knows."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from taskherd.domain.reports import AgentUsage
from taskherd.messages.limits import MAX_TOKENS
from taskherd.runner.agents.acp.usage import UsageMeter
from taskherd.runner.reporter import Reporter
from tests.pure.runner.contexts import make_context

SESSION = "the-session"
FIELDS = (
    "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "context_used", "context_size",
)  # fmt: skip


def told(amount: float | None = None, currency: str = "USD", session: str = SESSION, **fields: Any) -> dict[str, Any]:
    """Return a session update of usage."""
    cost = {} if amount is None else {"cost": {"amount": amount, "currency": currency}}
    return {"sessionId": session, "update": {"sessionUpdate": "usage_update", **cost, **fields}}


def of_models(**models: dict[str, Any]) -> dict[str, Any]:
    """Return the response to a prompt that tells tokens by model."""
    usage = [{"model": name, "token_count": counts} for name, counts in models.items()]
    return {"_meta": {"quota": {"model_usage": usage}}}


def opened(earlier: dict[str, Any] | None = None) -> UsageMeter:
    """Return the meter of a build whose session is open."""
    meter = UsageMeter({}, earlier or {})
    meter.open(SESSION)
    return meter


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    """Return a reporter."""
    return make_context(tmp_path).reporter


def reported(meter: UsageMeter, reporter: Reporter) -> list[tuple[str | None, str, dict[str, int]]]:
    """Return what is new: model, cost, and the numbers that are known."""
    found = []
    for report in meter.take_reports(reporter):
        assert isinstance(report, AgentUsage)
        cost = "" if report.cost is None else f"{report.cost.amount.normalize():f} {report.cost.currency}"
        numbers = {name: getattr(report, name) for name in FIELDS if getattr(report, name) is not None}
        found.append((report.model, cost, numbers))
    return found


def test_what_has_changed_is_reported_once(reporter: Reporter) -> None:
    """By model; the context and the costs, one a report, are without a model, and come first."""
    meter = opened()
    assert reported(meter, reporter) == []
    meter.handle(told(0.5, used=7, size=100), SESSION, in_turn=True)
    meter.handle(told(0.25, "EUR"), SESSION, in_turn=True)
    meter.end_turn(of_models(small={"inputTokens": 3}, large={"inputTokens": 5, "output_tokens": 1}))
    context = {"context_used": 7, "context_size": 100}
    assert reported(meter, reporter) == [
        (None, "0.25 EUR", context),
        (None, "0.5 USD", context),
        ("large", "", {"input_tokens": 5, "output_tokens": 1}),
        ("small", "", {"input_tokens": 3}),
    ]
    assert reported(meter, reporter) == []
    meter.end_turn(of_models(small={"inputTokens": 4, "cachedReadTokens": 9, "cachedWriteTokens": 8}))
    small = {"input_tokens": 7, "cache_read_tokens": 9, "cache_write_tokens": 8}
    assert reported(meter, reporter) == [("small", "", small)]
    meter.handle(told(used=8), SESSION, in_turn=False)
    context = {"context_used": 8, "context_size": 100}
    assert reported(meter, reporter) == [(None, "0.25 EUR", context), (None, "0.5 USD", context)]


def test_tokens_without_a_model_are_reported_with_the_context(reporter: Reporter) -> None:
    """Those of a response are without a model if it tells none; one without any tells nothing."""
    meter = opened()
    meter.end_turn({"usage": {"inputTokens": 2}})
    meter.end_turn({"usage": {"inputTokens": 2, "cached": 1}, "_meta": {"quota": 5}})
    meter.end_turn({"usage": {"outputTokens": 1}, "_meta": {"quota": {"model_usage": [{"model": "m"}]}}})
    meter.handle(told(size=50), SESSION, in_turn=True)
    assert reported(meter, reporter) == [(None, "", {"input_tokens": 4, "output_tokens": 1, "context_size": 50})]
    others: list[dict[str, Any] | None] = [
        None, {}, {"usage": 5}, {"usage": {}}, {"_meta": {"quota": {"model_usage": {"model": "m"}}}},
    ]  # fmt: skip
    for nothing in others:
        meter.end_turn(nothing)
    assert reported(meter, reporter) == []


def test_the_tokens_of_a_response_are_counted_either_by_model_or_without_one(reporter: Reporter) -> None:
    """Counts by model go before those without one, which are of the same tokens."""
    meter = opened()
    meter.end_turn({"usage": {"inputTokens": 9}, **of_models(m={"inputTokens": 9})})
    assert reported(meter, reporter) == [("m", "", {"input_tokens": 9})]


def test_the_names_of_models_are_made_fit_for_reports(reporter: Reporter) -> None:
    """They have at most 128 characters, and no spaces around them; what is no name counts without one."""
    meter = opened()
    meter.end_turn(of_models(**{"x" * 128 + "y": {"inputTokens": 1}, " spaced\u0000 ": {"inputTokens": 2}}))
    meter.end_turn({"_meta": {"quota": {"model_usage": [{"model": 5, "token_count": {"outputTokens": 3}}]}}})
    assert [(model, numbers) for model, _, numbers in reported(meter, reporter)] == [
        (None, {"output_tokens": 3}),
        ("spaced", {"input_tokens": 2}),
        ("x" * 128, {"input_tokens": 1}),
    ]


def test_fifteen_models_have_a_name(reporter: Reporter) -> None:
    """The sixteenth place is for what is counted without one; a model that is known goes on being counted."""
    meter = opened()
    for number in range(15):
        meter.end_turn(of_models(**{f"m{number:02}": {"inputTokens": 1}}))
    assert [model for model, _, _ in reported(meter, reporter)] == [f"m{number:02}" for number in range(15)]
    meter.end_turn(of_models(m15={"inputTokens": 1}, m14={"inputTokens": 10}))
    assert reported(meter, reporter) == [(None, "", {"input_tokens": 1}), ("m14", "", {"input_tokens": 11})]


def test_sums_stay_within_what_a_report_can_hold() -> None:
    """More is not counted."""
    meter = opened()
    for _ in range(2):
        meter.end_turn(of_models(m={"inputTokens": MAX_TOKENS - 1, "outputTokens": 1}))
    assert meter.checkpoint()["tokens"] == {"m": {"input_tokens": MAX_TOKENS, "output_tokens": 2}}
    for amount in (999_999_999_999, 1):  # the agent begins again with the second
        meter.handle(told(amount), SESSION, in_turn=True)
    assert meter.checkpoint()["cost"] == {"USD": "999999999999.999999999"}


@pytest.mark.parametrize(
    ("usage", "counters"),
    [
        ({"inputTokens": 5, "thoughtTokens": 4, "totalTokens": 9}, {"input_tokens": 5, "output_tokens": 4}),
        ({"inputTokens": 5, "thoughtTokens": 4, "totalTokens": 8}, {"input_tokens": 5}),
        ({"inputTokens": 5, "thoughtTokens": "4", "totalTokens": 9}, {"input_tokens": 5}),
        ({"outputTokens": 5, "cachedReadTokens": 4, "totalTokens": 5}, {"output_tokens": 5, "cache_read_tokens": 4}),
        ({"inputTokens": 5, "cachedReadTokens": 4, "totalTokens": 5}, {"input_tokens": 1, "cache_read_tokens": 4}),
        ({"inputTokens": 5, "cachedWriteTokens": 4, "totalTokens": 5}, {"input_tokens": 1, "cache_write_tokens": 4}),
        ({"inputTokens": 5, "cachedReadTokens": 7, "totalTokens": 5}, {"input_tokens": 0, "cache_read_tokens": 7}),
        ({"inputTokens": 5, "cachedReadTokens": 4, "totalTokens": 6}, {"input_tokens": 5, "cache_read_tokens": 4}),
    ],
)
def test_the_total_says_what_is_part_of_what(usage: dict[str, Any], counters: dict[str, int]) -> None:
    """Thoughts are output that is not counted yet if only that adds up to the total; a cache is input likewise."""
    meter = opened()
    meter.end_turn({"usage": usage})
    assert meter.checkpoint()["tokens"] == {"": counters}


def cost(meter: UsageMeter) -> dict[str, str]:
    """Return what a build has cost."""
    found: dict[str, str] = meter.checkpoint()["cost"]
    return found


def test_a_cost_counts_as_the_increase_of_its_currency() -> None:
    """One that is lower has begun again; what is told again has not."""
    meter = opened()
    steps = [
        (told(0.5), {"USD": "0.5"}),
        (told(0.5), {"USD": "0.5"}),
        (told(0.75), {"USD": "0.75"}),
        (told(0.25, "EUR"), {"USD": "0.75", "EUR": "0.25"}),
        (told(0.5), {"USD": "1.25", "EUR": "0.25"}),
        (told(0.75, session="other"), {"USD": "1.25", "EUR": "0.25"}),
        (told(0.75), {"USD": "1.5", "EUR": "0.25"}),
    ]
    for update, total in steps:
        assert meter.handle(update, SESSION, in_turn=True)
        assert cost(meter) == total


@pytest.mark.parametrize(
    ("turns", "in_turn", "amount", "counted"),
    [
        (0, False, 0.5, "0"),  # says again what the session had cost
        (0, True, 0.5, "0.5"),
        (1, False, 0.5, "0.5"),
        (0, True, 0.75, "0.25"),
        (0, True, 0.25, "0.25"),
    ],
)
def test_the_same_cost_after_a_turn_has_begun_again(turns: int, *, in_turn: bool, amount: float, counted: str) -> None:
    """In a later build, for a turn has cost something; before its first turn the cost is still that of before."""
    before = opened()
    before.handle(told(0.5), SESSION, in_turn=True)
    meter = opened(before.checkpoint())
    for _ in range(turns):
        meter.end_turn(None)
    meter.handle(told(amount), SESSION, in_turn=in_turn)
    assert cost(meter) == {"USD": counted}
    meter.handle(told(amount), SESSION, in_turn=True)
    assert cost(meter) == {"USD": counted}


def test_a_replay_counts_only_beyond_what_was_told_before() -> None:
    """What is told before the session is open, is a replay; of a new session nothing is known, so it spends nothing."""
    before = opened()
    before.handle(told(0.5), SESSION, in_turn=True)
    for replayed, counted in ((0.25, {"USD": "0"}), (0.5, {"USD": "0"}), (0.75, {"USD": "0.25"})):
        meter = UsageMeter({}, before.checkpoint())
        assert meter.handle(told(replayed, session="other"), None, in_turn=False)
        assert meter.handle(told(replayed), None, in_turn=False)
        assert (cost(meter), meter.checkpoint()["replayed"]) == ({}, {"USD": str(replayed)})
        meter.open(SESSION)
        assert (cost(meter), meter.checkpoint()["replayed"]) == (counted, {})
        assert meter.checkpoint()["session_cost"] == {"USD": str(replayed)}
        meter.open(SESSION)
        meter.handle(told(1.75), SESSION, in_turn=True)
        assert Decimal(cost(meter)["USD"]) == Decimal(counted["USD"]) + Decimal("1.75") - Decimal(str(replayed))


def test_a_replay_of_another_currency_is_what_it_had_cost_too() -> None:
    """Nothing was told of it before, so all of it is new; the cost in the first currency stays known."""
    before = opened()
    before.handle(told(0.5), SESSION, in_turn=True)
    meter = UsageMeter({}, before.checkpoint())
    meter.handle(told(0.25, "EUR"), None, in_turn=False)
    meter.open(SESSION)
    assert cost(meter) == {"EUR": "0.25"}
    assert meter.checkpoint()["session_cost"] == {"USD": "0.5", "EUR": "0.25"}


def test_a_session_that_nothing_is_known_of_has_cost_what_it_replays() -> None:
    """That was no cost of this build."""
    meter = UsageMeter({}, {"session": SESSION})
    meter.handle(told(0.5), None, in_turn=False)
    meter.open(SESSION)
    meter.handle(told(0.75), SESSION, in_turn=True)
    assert cost(meter) == {"USD": "0.25"}
    another = UsageMeter({}, {"session": "other", "session_cost": {"USD": "0.5"}})
    another.open(SESSION)
    another.handle(told(0.75), SESSION, in_turn=True)
    assert cost(another) == {"USD": "0.75"}


def test_the_next_runner_knows_all_that_counts(reporter: Reporter) -> None:
    """A checkpoint holds what was counted, in a form that JSON can hold; the next build knows the session's cost."""
    meter = UsageMeter({}, {"session": SESSION, "session_cost": {"USD": "0.5"}})
    meter.handle(told(0.75), None, in_turn=False)
    assert meter.checkpoint() == {
        "tokens": {}, "cost": {}, "context": {}, "session": SESSION, "session_cost": {"USD": "0.5"},
        "told": [], "has_begun": False, "replayed": {"USD": "0.75"},
    }  # fmt: skip
    meter = UsageMeter(meter.checkpoint(), {"session": "other", "session_cost": {"USD": "9"}})
    meter.open(SESSION)
    meter.handle(told(0.875, used=5, size=9), SESSION, in_turn=True)
    meter.handle(told(0.125, "EUR"), SESSION, in_turn=True)
    meter.end_turn(of_models(m={"inputTokens": 2}))
    checkpoint = {
        "tokens": {"m": {"input_tokens": 2}},
        "cost": {"USD": "0.375", "EUR": "0.125"},
        "context": {"context_used": 5, "context_size": 9},
        "session": SESSION,
        "session_cost": {"USD": "0.875", "EUR": "0.125"},
        "told": ["EUR", "USD"],
        "has_begun": True,
        "replayed": {},
    }
    assert meter.checkpoint() == checkpoint
    resumed = UsageMeter(checkpoint, {})
    assert resumed.checkpoint() == checkpoint
    resumed.handle(told(0.875), SESSION, in_turn=True)
    assert resumed.checkpoint() == checkpoint
    next_build = UsageMeter({}, checkpoint)
    assert next_build.checkpoint() == {
        "tokens": {}, "cost": {}, "context": {}, "session": SESSION,
        "session_cost": {"USD": "0.875", "EUR": "0.125"}, "told": [], "has_begun": False, "replayed": {},
    }  # fmt: skip
    assert reported(next_build, reporter) == []


def test_the_session_that_is_open_counts() -> None:
    """Rather than the one of the checkpoint, which is that of a runner before."""
    meter = UsageMeter({"session": "earlier"}, {})
    for session, used in (("later", 1), ("earlier", 2)):
        meter.handle(told(used=used, session=session), "later", in_turn=True)
        assert meter.checkpoint()["context"] == {"context_used": 1}


@pytest.mark.parametrize("update", [None, 5, {}, {"sessionUpdate": "plan"}])
def test_another_update_is_none_of_usage(update: object) -> None:
    """So others handle it."""
    assert not opened().handle({"sessionId": SESSION, "update": update}, SESSION, in_turn=True)
    assert opened().handle({"sessionId": "another", "update": {"sessionUpdate": "usage_update"}}, None, in_turn=True)
