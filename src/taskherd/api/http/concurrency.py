"""Limits on how many large requests are in progress at once, which bounds the memory that their bodies take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from taskherd.api.http.errors import rate_limited

if TYPE_CHECKING:
    from uuid import UUID


class ConcurrencyLimit:
    """Up to ``most`` requests in progress in this process, and up to ``per_user`` of one user."""

    def __init__(self, most: int, per_user: int, message: str) -> None:
        self._most = most
        self._per_user = per_user
        self._message = message
        self._in_progress: Counter[UUID] = Counter()

    def is_full(self, user_id: UUID) -> bool:
        """Return whether a request of this user would exceed a limit."""
        return self._in_progress[user_id] >= self._per_user or self._in_progress.total() >= self._most

    @contextmanager
    def enter(self, user_id: UUID) -> Iterator[None]:
        """Count a request while the block runs. Raise a 429 if it exceeds a limit."""
        if self.is_full(user_id):
            raise rate_limited(1, self._message)
        self._in_progress[user_id] += 1
        try:
            yield
        finally:
            self._in_progress[user_id] -= 1
            if not self._in_progress[user_id]:
                del self._in_progress[user_id]
