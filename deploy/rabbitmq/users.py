"""Print RabbitMQ definitions of users that have no more rights than their process needs; standard library only.

    python deploy/rabbitmq/users.py PASSWORDS [PREFIX] > users.json && rabbitmqctl import_definitions users.json

PASSWORDS is a folder with a file for each user that is wanted: worker, api, runner, provisioner. The output holds
salted hashes only (https://www.rabbitmq.com/docs/passwords). Importing again sets passwords and permissions anew.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import sys
from pathlib import Path

OWN = r"amq\.gen-.*"
"""Queues that the broker names, which are one connection's own."""
DEFAULT = r"amq\.default"


def permissions(prefix: str) -> dict[str, tuple[str, str, str]]:
    """What each user may configure, write and read (https://www.rabbitmq.com/docs/access-control)."""
    p = re.escape(prefix) + r"\."
    return {
        # Declares everything; takes reports and commands; publishes events, requests, letters, replies and probes.
        "worker": (f"{p}.*|{OWN}", f"{p}.*|{OWN}|{DEFAULT}", f"{p}.*|{OWN}"),
        # Gives commands, and reports for agents; reads events and its own replies.
        "api": (OWN, f"{p}(commands|reports)|{OWN}", f"{p}events|{OWN}"),
        # Declares, binds and reads work queues; reports; asks by a command for tasks and builds.
        "runner": (f"{p}work\\..+|{OWN}", f"{p}(commands|reports)|{p}work\\..+|{OWN}", f"{p}work(\\..+)?|{OWN}"),
        # One of yours that reports builds, and nothing else.
        "provisioner": ("", f"{p}reports", ""),
    }


def hashed(password: str) -> str:
    """The password as RabbitMQ keeps it: a salt of four bytes, and the SHA-256 of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def definitions(passwords: Path, prefix: str) -> dict[str, object]:
    """The users that have a password, with their permissions on the vhost "/"."""
    wanted = {name: rights for name, rights in permissions(prefix).items() if (passwords / name).is_file()}
    return {
        "users": [
            {
                "name": f"taskherd-{name}",
                "password_hash": hashed((passwords / name).read_text().strip()),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
            }
            for name in wanted
        ],
        "permissions": [
            {"user": f"taskherd-{name}", "vhost": "/", **dict(zip(("configure", "write", "read"), map(whole, rights)))}
            for name, rights in wanted.items()
        ],
    }


def whole(pattern: str) -> str:
    """A pattern that takes the whole name and nothing else."""
    return f"^({pattern})$"


if __name__ == "__main__":
    if len(sys.argv) not in {2, 3}:
        sys.exit(__doc__)
    folder, chosen = Path(sys.argv[1]), (sys.argv[2:] or ["taskherd"])[0]
    json.dump(definitions(folder, chosen), sys.stdout, indent=2)
    sys.stdout.write("\n")
