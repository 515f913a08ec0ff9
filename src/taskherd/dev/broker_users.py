"""A RabbitMQ user for each process of ``taskherd dev`` and the demo, with the rights that users.py gives."""

from __future__ import annotations

import json
import re
import secrets
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskherd.dev.services import Services

AMQP_URL: Final = "TASKHERD_AMQP_URL"
COMMAND_SENDERS: Final = "TASKHERD_COMMAND_SENDERS"
_EXCLUSIVE: Final = r"amq\.gen-.*"


def create(services: Services, prefix: str, targets: Sequence[str]) -> dict[str, dict[str, str]]:
    """Create the users, with new passwords, and return the variables that each command gets in addition.

    The user of ``services.amqp_url`` is the developer's: it may do everything, and its commands count. At an external
    broker, nothing is created.

    Args:
        services: the running services.
        prefix: of all exchanges and queues.
        targets: the pool and the name of the runner.
    """
    if services.rabbit is None:
        return {}
    passwords = {command: secrets.token_hex(16) for command in ("worker", "api", "runner")}
    users = [{"name": f"taskherd-{name}", "password": password, "tags": []} for name, password in passwords.items()]
    permissions = [
        {"user": f"taskherd-{name}", "vhost": "/", "configure": configure, "write": write, "read": read}
        for name, (configure, write, read) in rights(prefix, targets).items()
    ]
    services.rabbit.import_definitions(json.dumps({"users": users, "permissions": permissions}).encode())
    address = urlsplit(services.amqp_url)
    variables = {
        command: {
            AMQP_URL: address._replace(
                netloc=f"taskherd-{command}:{password}@{address.hostname}:{address.port}"
            ).geturl()
        }
        for command, password in passwords.items()
    }
    variables["worker"][COMMAND_SENDERS] = f"taskherd-api,{address.username}"
    return variables


def rights(prefix: str, targets: Sequence[str]) -> Mapping[str, tuple[str, str, str]]:
    """Return the configure, write and read patterns of each command's user."""
    p = re.escape(prefix) + r"\."
    queues = "|".join(map(re.escape, targets))
    patterns = {
        "worker": (f"{p}.*", rf"{p}.*|amq\.default", f"{p}.*"),
        "api": (_EXCLUSIVE, f"{p}(claims|commands|reports)|{_EXCLUSIVE}", f"{p}(dead|wakeups)|{_EXCLUSIVE}"),
        "runner": ("", f"{p}(claims|reports)", rf"{p}work\.({queues})"),
    }
    return {name: (f"^({c})$", f"^({w})$", f"^({r})$") for name, (c, w, r) in patterns.items()}
