from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.runner.agents.acp.usage import UsageMeter
from tests.harness.runner import eventually
from tests.runner.acp import AcpRun, acp_run
from tests.runner.test_acp import steps

pytestmark = pytest.mark.timeout(120)
SESSION = "s"


async def until_usage(run: AcpRun, build: int, **numbers: Any) -> None:
    """Wait until this is what was reported as used by a build."""
    await eventually(lambda: run.usage().get((build, "")) == numbers)


async def test_usage_is_told_as_it_grows(tmp_path: Path) -> None:
    """Tokens of turns are added up, the cost is that of the session, and the context is that of the last update."""
    async with acp_run(tmp_path) as run:
        await run.start(steps("usage: 90 0.1 100", "line: one"))
        await run.until_state("idle", "one")
        assert await run.send(steps("usage: 80 0.1", "usage: 70 0.3 50", "line: two")) is None
        await run.until_state("idle", "two")
        await until_usage(run, 1, input_tokens=150, output_tokens=2, cost="0.3", context_used=70, context_size=1000)


async def test_the_next_runner_goes_on_with_the_sums(tmp_path: Path) -> None:
    """A runner that is killed in the middle of a turn loses nothing of what was used, and counts nothing twice."""
    async with acp_run(tmp_path) as run:
        await run.start(steps("usage: 1 0.1 10", "line: one"))
        await run.until_state("idle", "one")
        assert await run.send(steps("usage: 2 0.2 20", "line: two", "wait: go", "usage: 3 0.4 20")) is None
        await eventually(lambda: run.usage().get((1, ""), {}).get("cost") == "0.2")
        await run.take_over()
        run.touch("go")
        await run.until_state("idle", "two")
        await until_usage(run, 1, input_tokens=30, output_tokens=2, cost="0.4", context_used=3, context_size=1000)


@pytest.mark.parametrize(
    ("traits", "told", "cost"),
    [
        (("resume",), "0.7", "0.2"),  # goes on from 0.5
        (("resume",), "0.3", "0.3"),  # begins again
        (("load", "replay-cost=0.5"), "0.7", "0.2"),  # replays what was told
        (("load", "replay-cost=0.6"), "0.7", "0.2"),  # replays also what no runner has seen
        (("load", "forgetful"), "0.7", "0.7"),  # a new session
    ],
)
async def test_a_new_build_counts_what_is_new(tmp_path: Path, traits: tuple[str, ...], told: str, cost: str) -> None:
    """The cost of an earlier build is not counted again, whether or not the agent goes on with that of its session."""
    async with acp_run(tmp_path, *traits) as run:
        await run.start(steps("usage: 1 0.5", "line: one"))
        await run.until_state("idle", "one")
        assert run.session is not None
        await run.session.stop()
        await run.start("line: one")
        await eventually(lambda: run.journal.ready_reported)
        assert await run.send(steps(f"usage: 2 {told}", "line: two")) is None
        await run.until_state("idle", "two")
        await until_usage(run, 1, cost="0.5", context_used=1, context_size=1000)
        await until_usage(run, 2, cost=cost, context_used=2, context_size=1000)


def update(amount: object = None, **fields: object) -> dict[str, Any]:
    """Return a session update of usage."""
    cost = {} if amount is None else {"cost": {"amount": amount, "currency": "USD"}}
    return {"sessionId": SESSION, "update": {"sessionUpdate": "usage_update", **cost, **fields}}


def spent(meter: UsageMeter) -> Decimal:
    """Return the cost that a meter has counted for its build."""
    return Decimal(meter.checkpoint()["cost"].get("USD", "0"))


@given(builds=st.lists(st.lists(st.integers(1, 10**6), max_size=5), min_size=1, max_size=5), replays=st.booleans())
def test_builds_add_up_to_the_cost_of_their_session(*, builds: list[list[int]], replays: bool) -> None:
    """Of an agent that goes on with the cost of its session, the costs of all builds add up to it, however it is told.

    The sum is exact, although costs come as binary floating point.
    """
    total, counted = 0, Decimal()
    checkpoint: dict[str, Any] = {}
    for turns in builds:
        meter = UsageMeter({}, checkpoint)
        if replays and total:
            meter.handle(update(total / 10**6), None, in_turn=False)
        meter.open(SESSION)
        for cost in turns:
            total += cost
            for _ in range(2):
                meter.handle(update(total / 10**6), SESSION, in_turn=True)
            meter = UsageMeter(meter.checkpoint(), {})
        counted += spent(meter)
        checkpoint = meter.checkpoint()
    assert counted == Decimal(total) / 10**6


@pytest.mark.parametrize(
    "fields",
    [
        {"used": -1, "size": None},
        {"used": "7", "size": True},
        {"used": 2**53, "size": 1.5},
        {"cost": 5},
        {"cost": {"amount": "5", "currency": "USD"}},
        {"cost": {"amount": -0.1, "currency": "USD"}},
        {"cost": {"amount": float("inf"), "currency": "USD"}},
        {"cost": {"amount": 1e300, "currency": "USD"}},
        {"cost": {"amount": 1, "currency": "credits"}},
        {"cost": {"amount": 1, "currency": ["USD"]}},
        {"cost": {"amount": True, "currency": "USD"}},
    ],
)
def test_nonsense_is_not_counted(fields: dict[str, Any]) -> None:
    """Numbers that no report can hold are left out, and the rest of an update counts."""
    meter = UsageMeter({}, {})
    meter.open(SESSION)
    assert meter.handle(update(**fields), SESSION, in_turn=True)
    assert (meter.checkpoint()["context"], meter.checkpoint()["cost"]) == ({}, {})
    meter.handle(update(1, **{**fields, "size": 5, "cost": {"amount": 1, "currency": "EUR"}}), SESSION, in_turn=True)
    assert (meter.checkpoint()["context"], meter.checkpoint()["cost"]) == ({"context_size": 5}, {"EUR": "1"})


def test_other_sessions_do_not_count() -> None:
    """An update of another session is left out, and one of another kind is not taken at all."""
    meter = UsageMeter({}, {})
    meter.open("other")
    assert meter.handle(update(1), "other", in_turn=True)
    assert spent(meter) == 0
    assert not meter.handle({"sessionId": "other", "update": {"sessionUpdate": "plan"}}, "other", in_turn=True)
    assert not meter.handle({"sessionId": "other", "update": None}, "other", in_turn=True)


def test_thoughts_are_output() -> None:
    """Tokens of thoughts that are counted beside the output are part of it, those that are counted in it are not."""
    for total, output in ((16, 11), (12, 7)):
        meter = UsageMeter({}, {})
        usage = {"inputTokens": 5, "outputTokens": 7, "thoughtTokens": 4, "totalTokens": total}
        meter.end_turn({"stopReason": "end_turn", "usage": usage})
        assert meter.checkpoint()["tokens"] == {"": {"input_tokens": 5, "output_tokens": output}}


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (150, {"input_tokens": 60, "output_tokens": 50, "cache_read_tokens": 30, "cache_write_tokens": 10}),
        (190, {"input_tokens": 100, "output_tokens": 50, "cache_read_tokens": 30, "cache_write_tokens": 10}),
        (None, {"input_tokens": 100, "output_tokens": 50, "cache_read_tokens": 30, "cache_write_tokens": 10}),
    ],
)
def test_each_token_is_counted_once(total: int | None, expected: dict[str, int]) -> None:
    """Tokens of a cache that an agent tells as a part of its input, as the total shows, are no input besides."""
    meter = UsageMeter({}, {})
    counts = {"inputTokens": 100, "outputTokens": 50, "cachedInputTokens": 30, "cacheWriteInputTokens": 10}
    quota = {"model_usage": [{"model": "m", "token_count": {**counts, "totalTokens": total}}]}
    meter.end_turn({"_meta": {"quota": quota}})
    assert meter.checkpoint()["tokens"] == {"m": expected}


def test_models_beyond_the_limit_are_counted_without_a_name() -> None:
    """A build has at most 16 models; the tokens of further ones are counted without one, so that the sum stays."""
    meter = UsageMeter({}, {})
    for number in range(20):
        counts = {"input_tokens": 1, "output_tokens": "?"}
        usage = [{"model": f"m{number}", "token_count": counts}, {"model": 5}, 7]
        meter.end_turn({"_meta": {"quota": {"model_usage": usage}}})
    tokens = meter.checkpoint()["tokens"]
    assert (len(tokens), tokens[""]) == (16, {"input_tokens": 5})
