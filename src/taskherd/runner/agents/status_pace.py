"""How often the status of an agent is reported: each report is a version of its task, and an event to its followers.

In between the latest status waits; what came before it is left out.
"""

from __future__ import annotations

from typing import Final

STATUS_EVERY: Final = 2.0
"""Minimum number of seconds between two reports that differ only in their message."""
CHANGE_EVERY: Final = 0.1
"""Minimum number of seconds between two changes of what an agent says of itself: as often as it may over HTTP.

A state that was left out in between is a change, too: an agent that works for a moment and is idle again has answered.
"""
