"""The values of the labels of the runner's counters."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Final

from taskherd.domain.reports import ExitReason
from taskherd.messages.work import REQUEST_TYPES
from taskherd.runner.claims import Claim

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LABEL_VALUES: Final[Mapping[str, Sequence[tuple[str, ...]]]] = {
    "runner_requests": (
        *product(REQUEST_TYPES, ("done", "failed", "repeated", "ignored")),
        *(("workspace.start", claim.value) for claim in Claim if claim is not Claim.WON),
        ("unknown", "invalid"),
    ),
    "runner_endings": tuple((why.value,) for why in ExitReason),
    "runner_adopted": (("running",), ("ended",), ("lost",)),
}
"""The counters with labels, and all values of these labels."""
