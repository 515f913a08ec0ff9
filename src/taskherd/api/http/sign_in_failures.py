"""Requests whose token was not accepted: counted by reason, and logged by client at a bounded rate.

The first failure of a client is logged at once; after that, one line a minute says how many there were. Beyond
``MAX_CLIENTS`` in a minute, the others are summed up in one line. No line contains a token or a part of one.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from taskherd.observability.metrics import Metrics

log = structlog.get_logger(__name__)

LOG_INTERVAL: Final = 60.0
"""Seconds between two summaries of a client's failures."""
MAX_CLIENTS: Final = 100
"""Maximum number of clients that the log names in ``LOG_INTERVAL``."""
_OTHERS: Final = "others"


class SignInFailure(StrEnum):
    """Why the token of a request was not accepted."""

    MISSING = "missing"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    REVOKED = "revoked"
    DEACTIVATED = "deactivated"
    RATE_LIMITED = "rate_limited"


class SignInFailures:
    """The failures since the last summaries, by client."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counts: dict[str, Counter[SignInFailure]] = {}
        self._continuing: frozenset[str] = frozenset()

    def record(self, client: str, reason: SignInFailure) -> None:
        """Count a failure, and log it if it is the first of its client.

        Requests without a token are only counted: browsers and health checks make them.
        """
        self._metrics.api_sign_in_failures.labels(reason.value).inc()
        if reason is SignInFailure.MISSING:
            return
        if client not in self._counts and len(self._counts) >= MAX_CLIENTS:
            client = _OTHERS
        if client not in self._counts:
            self._counts[client] = Counter()
            if client not in self._continuing:
                log.warning("sign-in failed", client=client, reason=reason.value)
        self._counts[client][reason] += 1

    async def log_summaries(self) -> None:
        """Log how often each client failed since the previous call, unless its only failure is logged already."""
        for client, counts in self._counts.items():
            if counts.total() > 1 or client in self._continuing:
                reasons = {reason.value: count for reason, count in sorted(counts.items())}
                log.warning("sign-ins failed", client=client, count=counts.total(), reasons=reasons)
        self._continuing = frozenset(self._counts)
        self._counts = {}
