"""How long to wait after a failure: exponentially longer up to a maximum, and jittered.

With jitter the clients of one outage do not all return at the same moment:
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

MAX_DOUBLINGS: Final = 16
"""No wait doubles more often than this; keeps the power small however many failures there were."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff: ``first`` seconds after one failure, doubled by each further one up to ``maximum``.

    ``jitter`` is the share of each wait that is random; with 1.0, a wait lies anywhere between 0 and its full length
    ("full jitter").
    """

    first: float
    maximum: float
    jitter: float = 1.0

    def longest(self, failures: int) -> float:
        """Return the wait in seconds after ``failures`` in a row, without jitter; none counts as one."""
        return min(self.maximum, self.first * 2.0 ** min(max(failures, 1) - 1, MAX_DOUBLINGS))

    def delay(self, failures: int) -> float:
        """Return the wait in seconds after ``failures`` in a row, with jitter."""
        return self.longest(failures) * (1 - self.jitter * random.random())  # noqa: S311 - no secret
