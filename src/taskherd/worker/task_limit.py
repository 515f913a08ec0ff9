"""Whether a batch of reports is limited by its number of tasks.

What a task costs grows with the number of tasks in the batch: the documents of a few thousand tasks outgrow the
processor's caches and are collected late. A batch that is limited only by its number of deliveries has as many, if they
are arrays. But the second report of a task in a batch is nearly free, so where reports repeat their tasks a larger
batch costs less (docs/adr/0061).
"""

from __future__ import annotations

from typing import Final

MAX_DELIVERIES_PER_TASK: Final = 1.3
"""Up to so many deliveries per task, each counted once for each of its tasks, batches are limited."""


class TaskLimit:
    """Whether batches are limited, as the deliveries of the last ones were."""

    def __init__(self) -> None:
        self._repeats = True

    def limit(self, most: int) -> int | None:
        """Return ``most`` while deliveries are about different tasks; None if a batch may have any number of tasks."""
        return None if self._repeats else most

    def note(self, mentions: int, tasks: int, most: int) -> None:
        """Note deliveries that were taken at once, with so many different tasks.

        ``mentions`` is the sum of the numbers of different tasks in each delivery. Fewer than ``most`` tasks, which no
        limit divides, say nothing.
        """
        if tasks >= most:
            self._repeats = mentions > MAX_DELIVERIES_PER_TASK * tasks
