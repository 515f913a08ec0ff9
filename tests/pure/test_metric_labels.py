"""Which series a worker exposes before anything has happened: Prometheus misses the first increment of a new one."""

from __future__ import annotations

from itertools import product

import pytest

from taskherd.domain.directory import TemplatePool
from taskherd.observability.metrics import Metrics
from taskherd.worker import metric_labels

OTHER = ("other", "other")
KINDS = ("workspace.start", "workspace.stop", "workspace.delete", "agent.input", "agent.interrupt", "agent.answer")
EXITS = ("exited", "signalled", "out_of_memory", "timeout", "lost", "stopped", "interrupted", "not_started")
COMMANDS = (
    "create", "delete", "update_input", "update_labels", "send", "pause", "resume", "interrupt", "answer",
)  # fmt: skip
REASONS = (
    "not_json", "too_large", "too_many", "unknown_type", "invalid", "build_conflict", "build_out_of_range",
    "unknown_input", "untrusted_sender", "usage_overflow", "requests_overflow", "parked_expired", "parked_overflow",
    "command_refused", "data_error", "fault",
)  # fmt: skip
STEPS = (
    "expire_parked", "create_partitions", "drop_partitions", "update_tables", "prune", "erase", "count", "index",
)  # fmt: skip
INVALID = ("unknown", "invalid")


def series(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metric by the values of its labels, which are in the order of their declaration."""
    (labels,) = (each.labels for each in metrics.declared if each.name == f"taskherd_{name}")
    samples = (sample for family in metrics.registry.collect() for sample in family.samples)
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for sample in samples
        if sample.name == f"taskherd_{name}"
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("commands_total", {*product([f"task.{each}" for each in COMMANDS], ("accepted", "refused", "repeated"))}),
        ("dead_lettered_total", {*product(REASONS)}),
        ("texts_cleaned_total", {("control",), ("cut",), ("uri",)}),
        ("batch_failures_total", {("database",), ("broker",), ("bisected",)}),
        ("maintenance_failures_total", {*product(STEPS)}),
        ("requests_sent_total", {*product(KINDS)}),
        ("requests_given_up_total", {(kind, *OTHER) for kind in KINDS}),
        ("agent_events_total", {(event, *OTHER) for event in ("started", "lost", "stalled")}),
        ("agent_exits_total", {(why, *OTHER) for why in EXITS}),
        ("usage_cost_total", {("USD", *OTHER)}),
        ("usage_tokens_total", {(kind, *OTHER) for kind in ("input", "output", "cache_read", "cache_write")}),
        ("interrupts_total", {(outcome, *OTHER) for outcome in ("stopped", "ended", "failed")}),
        ("agents_stalled", {OTHER}),
    ],
)
def test_every_series_is_there_from_the_start(name: str, expected: set[tuple[str, ...]]) -> None:
    """At 0; messages that cannot be decoded are of an unknown type."""
    metrics = Metrics()
    metric_labels.initialize(metrics)
    invalid = {INVALID} if name == "commands_total" else set()
    assert series(metrics, name) == dict.fromkeys(expected | invalid, 0)


def test_reports_and_claims_have_every_outcome_from_the_start() -> None:
    """By type first, and claims only those that their type has."""
    metrics = Metrics()
    metric_labels.initialize(metrics)
    reports = series(metrics, "reports_total")
    types, outcomes = ({labels[place] for labels in reports.keys() - {INVALID}} for place in (0, 1))
    assert {"app.status", "agent.heartbeat", "agent.exit"} <= types
    assert {"applied", "unchanged", "stale", "parked"} <= outcomes
    assert reports.keys() == {*product(types, outcomes), INVALID}
    assert series(metrics, "claims_total").keys() == {
        *product(["build.claim"], ("granted", "repeated", "taken", "gone")),
        ("task.owned", "answered"), *product(["runner.hello"], ("accepted", "refused")), INVALID,
    }  # fmt: skip


def test_a_new_template_has_every_series_at_once() -> None:
    """For each status of its tasks and each kind of request, beside those of other templates."""
    metrics = Metrics()
    metric_labels.initialize(metrics)
    pair = TemplatePool("claude", "gpu")
    metric_labels.follow(metrics, frozenset(), frozenset({pair}))
    given_up = series(metrics, "requests_given_up_total")
    assert given_up == dict.fromkeys(((kind, *each) for kind in KINDS for each in (OTHER, pair)), 0)
    statuses = ("pending", "initializing", "active", "paused", "unknown", "error")
    assert series(metrics, "tasks") == dict.fromkeys(
        ((status, *each) for status in statuses for each in (OTHER, pair)), 0
    )
    metric_labels.follow(metrics, frozenset({pair}), frozenset())
    assert series(metrics, "requests_given_up_total") == dict.fromkeys(((kind, *OTHER) for kind in KINDS), 0)
