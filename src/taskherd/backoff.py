"""Exponential backoff with a maximum and jitter.

With jitter, the clients affected by one outage do not all retry at the same moment:
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

MAX_DOUBLINGS: Final = 16
"""Maximum number of doublings of a wait; limits the power for any number of failures."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff: ``first`` seconds after one failure, doubled with each further one up to ``maximum``.

    ``jitter`` is the random share of each wait; with 1.0 ("full jitter") a wait is between 0 and its full length.
    """

    first: float
    maximum: float
    jitter: float = 1.0

    def longest(self, failures: int) -> float:
        """Return the wait in seconds after ``failures`` in a row, without jitter; 0 counts as 1."""
        return min(self.maximum, self.first * 2.0 ** min(max(failures, 1) - 1, MAX_DOUBLINGS))

    def delay(self, failures: int) -> float:
        """Return the wait in seconds after ``failures`` in a row, with jitter."""
        return self.longest(failures) * (1 - self.jitter * random.random())  # noqa: S311 - not a secret
