"""Compare this machine's clock with another one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from taskherd.cli.diagnostics.findings import Finding, error, ok

if TYPE_CHECKING:
    from collections.abc import Callable

    Now = Callable[[], datetime]
    """A clock; tests pass one that is wrong."""

MAX_DIFFERENCE: Final = 2.0
"""Maximum difference between this machine's clock and another, in seconds."""


def utc_now() -> datetime:
    """Return the time of this machine's clock."""
    return datetime.now(UTC)


def compare(peer: str, shown: tuple[datetime, datetime], local: tuple[datetime, datetime]) -> Finding:
    """Compare the clock of ``peer`` with this machine's.

    Args:
        peer: whose clock it is.
        shown: the earliest and latest time that it may have shown when it was read.
        local: this machine's times just before and just after that.
    """
    what = f"clocks of this machine and {peer}"
    earliest, latest = shown
    before, after = local
    ahead = max((earliest - after).total_seconds(), 0.0) - max((before - latest).total_seconds(), 0.0)
    if abs(ahead) <= MAX_DIFFERENCE:
        return ok(what, f"at most {MAX_DIFFERENCE:g} s apart")
    found = f"the clock of {peer} is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}"
    return error(what, found, "synchronize both machines with NTP; `timedatectl` shows whether one is")
