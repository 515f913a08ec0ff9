"""Headers from outside are taken for a trace only where they are one."""

from __future__ import annotations

from typing import Any

import pytest

from taskherd.observability.tracing import Tracing, extract

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("headers", "taken"),
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
def test_only_a_well_formed_trace_is_taken(headers: dict[str, Any], taken: dict[str, str]) -> None:
    """As the standard says (https://www.w3.org/TR/trace-context/#traceparent-header), and bounded."""
    assert extract(headers) == taken


def test_what_comes_from_one_trace_goes_on_in_it() -> None:
    """A parent, or links that all are of one trace, are carried on while the span lasts; of several, none is."""
    tracing = Tracing()
    with tracing.span("x", parent={"traceparent": GOOD}):
        assert tracing.current() == {"traceparent": GOOD}
    assert tracing.current() == {}
    with tracing.span("x", links=[{}, {"traceparent": GOOD}, {"traceparent": GOOD}]):
        assert tracing.current() == {"traceparent": GOOD}
    with tracing.span("x", links=[{"traceparent": OTHER}, {"traceparent": GOOD}]):
        assert tracing.current() == {}
