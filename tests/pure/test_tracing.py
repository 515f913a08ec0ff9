"""Traces are taken from well-formed headers only, and propagated."""

from __future__ import annotations

from typing import Any

import pytest

from taskherd.observability.tracing import Tracing, extract

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"traceparent": GOOD}, {"traceparent": GOOD}),
        ({"traceparent": GOOD, "tracestate": "a=1"}, {"traceparent": GOOD, "tracestate": "a=1"}),
        ({"traceparent": GOOD, "tracestate": "x" * 513}, {"traceparent": GOOD}),
        ({"traceparent": GOOD, "tracestate": "a\nb"}, {"traceparent": GOOD}),
        ({"traceparent": GOOD.upper()}, {}),
        ({"traceparent": "ff" + GOOD[2:]}, {}),
        ({"traceparent": f"00-{'0' * 32}-b7ad6b7169203331-01"}, {}),
        ({"traceparent": GOOD + "\n"}, {}),
        ({"traceparent": 7}, {}),
        ({}, {}),
    ],
)
def test_only_a_well_formed_trace_is_extracted(headers: dict[str, Any], expected: dict[str, str]) -> None:
    """The format is the standard's (https://www.w3.org/TR/trace-context/#traceparent-header), with a maximum length."""
    assert extract(headers) == expected


def test_a_common_trace_is_propagated() -> None:
    """During a span, its parent or the common trace of its links is current; links to several traces are not."""
    tracing = Tracing()
    with tracing.span("x", parent={"traceparent": GOOD}):
        assert tracing.current() == {"traceparent": GOOD}
    assert tracing.current() == {}
    with tracing.span("x", links=[{}, {"traceparent": GOOD}, {"traceparent": GOOD}]):
        assert tracing.current() == {"traceparent": GOOD}
    with tracing.span("x", links=[{"traceparent": OTHER}, {"traceparent": GOOD}]):
        assert tracing.current() == {}
