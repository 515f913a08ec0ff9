"""Print RabbitMQ definitions of one least-privilege user per process; uses the standard library only.

    python deploy/rabbitmq/users.py PASSWORDS [PREFIX] > users.json && rabbitmqctl import_definitions users.json

PASSWORDS is a folder with one password file per user to create: worker, api, runner, provisioner. The output contains
salted hashes only (https://www.rabbitmq.com/docs/passwords). Importing it again overwrites passwords and permissions.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import sys
from pathlib import Path

EXCLUSIVE = r"amq\.gen-.*"
"""Server-named queues, which are exclusive to one connection."""
DEFAULT_EXCHANGE = r"amq\.default"


def permissions(prefix: str) -> dict[str, tuple[str, str, str]]:
    """Return each user's configure, write and read patterns (https://www.rabbitmq.com/docs/access-control)."""
    p = re.escape(prefix) + r"\."
    return {
        # Declares everything; consumes reports, commands and claims; publishes events, work requests, dead letters,
        # replies and probes.
        "worker": (f"{p}.*|{EXCLUSIVE}", f"{p}.*|{EXCLUSIVE}|{DEFAULT_EXCHANGE}", f"{p}.*|{EXCLUSIVE}"),
        # Publishes commands, and reports for agents; consumes events and the replies to its commands.
        "api": (EXCLUSIVE, f"{p}(commands|reports)|{EXCLUSIVE}", f"{p}events|{EXCLUSIVE}"),
        # Consumes its work queues, which the worker declares, and replies; publishes reports, claims and questions.
        "runner": (EXCLUSIVE, f"{p}(claims|reports)", f"{p}work\\..+|{EXCLUSIVE}"),
        # Your own provisioner: publishes build reports and nothing else.
        "provisioner": ("", f"{p}reports", ""),
    }


def password_hash(password: str) -> str:
    """Return RabbitMQ's password hash: a salt of four bytes, then the SHA-256 of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def definitions(passwords: Path, prefix: str) -> dict[str, object]:
    """Return the users that have a password file, with their permissions on the vhost "/".

    Raises:
        SystemExit: there is no folder, no password file in it, or one without a password.
    """
    if not passwords.is_dir():
        sys.exit(f"users.py: {passwords} is not a folder; expected one with password files\n{__doc__}")
    wanted = {name: rights for name, rights in permissions(prefix).items() if (passwords / name).is_file()}
    if not wanted:
        sys.exit(f"users.py: {passwords} has no password file; expected one of: {', '.join(permissions(prefix))}")
    for name in wanted:
        if not (passwords / name).read_text().strip():
            sys.exit(f"users.py: {passwords / name} is empty; expected a password")
    return {
        "users": [
            {
                "name": f"taskherd-{name}",
                "password_hash": password_hash((passwords / name).read_text().strip()),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
            }
            for name in wanted
        ],
        "permissions": [
            {
                "user": f"taskherd-{name}",
                "vhost": "/",
                **dict(zip(("configure", "write", "read"), map(anchored, rights))),
            }
            for name, rights in wanted.items()
        ],
    }


def anchored(pattern: str) -> str:
    """Return the pattern anchored, so that it matches whole names only."""
    return f"^({pattern})$"


if __name__ == "__main__":
    if len(sys.argv) not in {2, 3}:
        sys.exit(__doc__)
    folder, chosen = Path(sys.argv[1]), (sys.argv[2:] or ["taskherd"])[0]
    json.dump(definitions(folder, chosen), sys.stdout, indent=2)
    sys.stdout.write("\n")
