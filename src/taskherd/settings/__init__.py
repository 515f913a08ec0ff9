"""Settings from ``TASKHERD_…`` environment variables, validated at start; all errors are reported together."""

from taskherd.settings.fields import Settings
from taskherd.settings.loading import SettingInfo, UnknownVariable, describe, load, unknown_variables, variable_of
from taskherd.settings.types import MIN_SECRET_KEY, Seconds
from taskherd.settings.urls import amqp_hosts, database_hosts, with_host, without_password

__all__ = [
    "MIN_SECRET_KEY",
    "Seconds",
    "SettingInfo",
    "Settings",
    "UnknownVariable",
    "amqp_hosts",
    "database_hosts",
    "describe",
    "load",
    "unknown_variables",
    "variable_of",
    "with_host",
    "without_password",
]
