"""Explanations say what the view says, of any history, in sentences."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given, settings

from taskherd.domain import fold
from taskherd.domain.builds import initial_state
from taskherd.domain.explain import explain
from taskherd.domain.liveness import Timeouts, detect_loss, time_out_build
from taskherd.domain.reports import Report
from taskherd.domain.view import Status, derive_view
from tests.harness.histories import NOON, TASK, corpus, histories

PATIENCE = Timeouts(
    agent_lost_after=timedelta(seconds=30),
    agent_connect_timeout=timedelta(seconds=120),
    build_timeout=timedelta(minutes=30),
    request_ttl=timedelta(minutes=10),
    mass_silence_hold=timedelta(minutes=5),
)


def explained(told: list[Report], quiet: timedelta) -> str:
    """Check every value of the explanation against the view; the status's rule."""
    state = initial_state(TASK, NOON)
    for report in told:
        state = fold.fold(state, fold.with_build_number(report, state), NOON).state
    now = NOON + quiet
    state = detect_loss(time_out_build(state, NOON, now, PATIENCE), NOON, now, PATIENCE)
    seen = derive_view(state, "task")
    why = explain(state, PATIENCE)
    assert why.status.value is seen.status
    assert why.current_state.value == seen.current_state
    assert why.health.value == seen.health
    for part in (why.status, why.current_state, why.health):
        assert part.explanation.endswith(".")
        assert ".." not in part.explanation
        assert part.explanation[0].isupper()
        assert part.rule
    return f"{why.status.value} {why.status.rule}"


@settings(max_examples=200, deadline=None)
@given(told=histories())
def test_it_says_what_the_view_says(told: list[Report]) -> None:
    """Whatever was reported, and after any silence, each explanation explains the value that readers see."""
    for quiet in (timedelta(), timedelta(minutes=3), timedelta(hours=1)):
        explained(told, quiet)


def test_all_statuses_have_their_reasons() -> None:
    """A corpus of histories reaches every status, and more rules than statuses."""
    found = {explained(told, quiet) for told in corpus(400) for quiet in (timedelta(), timedelta(hours=1))}
    found.add(explained([], timedelta()))
    assert {each.split()[0] for each in found} == set(Status)
    assert len(found) > 12
