"""What people set, as `TASKHERD_…` in the environment: validated at start, all that is wrong named at once."""

from taskherd.settings.durations import Seconds
from taskherd.settings.fields import SECRET_KEY_LEAST, Settings
from taskherd.settings.loading import Described, Unknown, describe, load, unknown_variables, variable_of

__all__ = [
    "SECRET_KEY_LEAST",
    "Described",
    "Seconds",
    "Settings",
    "Unknown",
    "describe",
    "load",
    "unknown_variables",
    "variable_of",
]
