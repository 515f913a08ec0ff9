"""What is logged and counted about failed sign-ins."""

from __future__ import annotations

import asyncio
from typing import Any

from structlog.testing import capture_logs

from taskherd.api.http.sign_in_failures import SignInFailure, SignInFailures
from taskherd.observability.metrics import Metrics


def count(metrics: Metrics, reason: SignInFailure) -> float:
    """Return how many failures were counted for a reason."""
    return metrics.registry.get_sample_value("taskherd_api_sign_in_failures_total", {"reason": reason.value}) or 0


def recorded(failures: SignInFailures, *each: tuple[str, SignInFailure], times: int = 1) -> list[Any]:
    """Record failures, and return the lines that were logged."""
    with capture_logs() as lines:
        for client, reason in each * times:
            failures.record(client, reason)
    return [(line["event"], line["client"], line.get("reason")) for line in lines]


def summaries(failures: SignInFailures) -> list[Any]:
    """Return the summaries that are logged."""
    with capture_logs() as lines:
        asyncio.run(failures.log_summaries())
    return [(line["client"], line["count"], line["reasons"]) for line in lines]


def test_the_first_failure_is_logged_and_then_a_summary() -> None:
    """100,000 failures of a client are two lines in the first minute and one in each later one; all are counted."""
    metrics = Metrics()
    failures = SignInFailures(metrics)
    guess = ("192.0.2.66", SignInFailure.UNKNOWN)
    assert recorded(failures, guess, times=100_000) == [("sign-in failed", "192.0.2.66", "unknown")]
    assert recorded(failures, ("192.0.2.66", SignInFailure.RATE_LIMITED), times=5) == []
    assert summaries(failures) == [("192.0.2.66", 100_005, {"rate_limited": 5, "unknown": 100_000})]
    assert recorded(failures, guess) == []
    assert summaries(failures) == [("192.0.2.66", 1, {"unknown": 1})]
    assert summaries(failures) == []
    assert recorded(failures, guess) == [("sign-in failed", "192.0.2.66", "unknown")]
    assert summaries(failures) == []
    assert count(metrics, SignInFailure.UNKNOWN) == 100_002
    assert count(metrics, SignInFailure.RATE_LIMITED) == 5


def test_many_clients_are_summed_up() -> None:
    """Guesses from very many addresses are a bounded number of lines, and none is lost from the sum."""
    failures = SignInFailures(Metrics())
    clients = [(f"192.0.2.{number // 250}.{number % 250}", SignInFailure.MALFORMED) for number in range(2_000)]
    assert len(recorded(failures, *clients)) == 100 + 1
    assert summaries(failures) == [("others", 1_900, {"malformed": 1_900})]


def test_a_request_without_a_token_is_only_counted() -> None:
    """A browser that opens the page, and a health check, present no token: that is no attempt to sign in."""
    metrics = Metrics()
    failures = SignInFailures(metrics)
    assert recorded(failures, ("192.0.2.1", SignInFailure.MISSING), times=3) == []
    assert summaries(failures) == []
    assert count(metrics, SignInFailure.MISSING) == 3
