"""Print RabbitMQ definitions of one least-privilege user per process; uses the standard library only.

    python deploy/rabbitmq/users.py PASSWORDS [PREFIX] [--runner USER=TARGET,TARGET…]… > users.json
    rabbitmqctl import_definitions users.json

PASSWORDS is a folder with one password file per user to create: worker, api, operator, provisioner, and those of
runners. Each user of runners needs a --runner that names its targets: its pool and the names of the runners that use
it, as in --runner runner-gpu=gpu,gpu-0,gpu-1. It may read the queues of these targets only.

PREFIX is TASKHERD_AMQP_PREFIX, taskherd by default. The users are named after it, as PREFIX-worker, because RabbitMQ
has one list of users for all vhosts: those of installations with other prefixes stay as they are. The output contains
salted hashes only (https://www.rabbitmq.com/docs/passwords). Importing it again overwrites passwords and permissions.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import secrets
import sys
from pathlib import Path
from typing import NoReturn

EXCLUSIVE = r"amq\.gen-.*"
"""Server-named queues, which are exclusive to one connection. Replies need none: they use direct reply-to."""
DEFAULT_EXCHANGE = r"amq\.default"


RUNNERS = "runner"
"""How the names of runners' users begin."""
TARGET = re.compile(r"[a-z0-9-]{1,64}")
"""The name of a pool or runner."""
PREFIX = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""What TASKHERD_AMQP_PREFIX may be."""


def permissions(prefix: str, runners: dict[str, list[str]]) -> dict[str, tuple[str, str, str]]:
    """Return each user's configure, write and read patterns (https://www.rabbitmq.com/docs/access-control).

    ``runners`` are the targets of each user of a runner.
    """
    p = re.escape(prefix) + r"\."
    rights = {
        # Declares everything; consumes reports, commands and claims; publishes events, work requests, dead letters,
        # replies and probes.
        "worker": (f"{p}.*", f"{p}.*|{DEFAULT_EXCHANGE}", f"{p}.*"),
        # Publishes commands, and reports for agents; consumes wakeups; reads and replays dead letters for admins.
        "api": (EXCLUSIVE, f"{p}(claims|commands|reports)|{EXCLUSIVE}", f"{p}(dead|wakeups)|{EXCLUSIVE}"),
        # `taskherd dead`: reads the dead letters, and publishes them again to where they came from.
        "operator": ("", f"{p}(claims|commands|reports)", f"{p}dead"),
        # Your own provisioner: publishes build reports and nothing else.
        "provisioner": ("", f"{p}reports", ""),
    }
    for user, targets in runners.items():
        # Consumes the queues of its targets, which the worker declares; publishes reports and claims.
        queues = "|".join(map(re.escape, targets))
        rights[user] = ("", f"{p}(claims|reports)", f"{p}work\\.({queues})")
    return rights


def password_hash(password: str) -> str:
    """Return RabbitMQ's password hash: a salt of four bytes, then the SHA-256 of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def definitions(passwords: Path, prefix: str, runners: dict[str, list[str]]) -> dict[str, object]:
    """Return the users that have a password file, with their permissions on the vhost "/".

    Raises:
        SystemExit: there is no folder, no password file in it, one without a password, or a runner without targets, or
            the prefix can be none.
    """
    if not PREFIX.fullmatch(prefix):
        sys.exit(f"users.py: the prefix {prefix!r} is wrong; expected the value of TASKHERD_AMQP_PREFIX")
    if not passwords.is_dir():
        sys.exit(f"users.py: {passwords} is not a folder; expected one with password files\n{__doc__}")
    for file in sorted(passwords.glob(f"{RUNNERS}*")):
        if file.name not in runners:
            sys.exit(f"users.py: {file} is of a runner; add --runner {file.name}=POOL,NAME with its pool and names")
    rights = permissions(prefix, runners)
    wanted = {name: rights for name, rights in rights.items() if (passwords / name).is_file()}
    if not wanted:
        expected = ", ".join(dict.fromkeys((*rights, RUNNERS)))
        sys.exit(f"users.py: {passwords} has no password file; expected one of: {expected}")
    for name in (*wanted, *runners):
        if not (passwords / name).is_file() or not (passwords / name).read_text().strip():
            sys.exit(f"users.py: {passwords / name} is missing or empty; expected a password")
    return {
        "users": [
            {
                "name": f"{prefix}-{name}",
                "password_hash": password_hash((passwords / name).read_text().strip()),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
            }
            for name in wanted
        ],
        "permissions": [
            {
                "user": f"{prefix}-{name}",
                "vhost": "/",
                **dict(zip(("configure", "write", "read"), map(anchored, rights))),
            }
            for name, rights in wanted.items()
        ],
    }


def anchored(pattern: str) -> str:
    """Return the pattern anchored, so that it matches whole names only."""
    return f"^({pattern})$"


def runner_targets(option: str) -> tuple[str, list[str]]:
    """Return the user and the targets of an option ``--runner USER=TARGET,TARGET``.

    Raises:
        SystemExit: the user's name does not begin like those of runners, or a target is no name of a pool or runner.
    """
    user, _, listed = option.partition("=")
    targets = listed.split(",")
    if not (user.startswith(RUNNERS) and TARGET.fullmatch(user)) or not all(map(TARGET.fullmatch, targets)):
        sys.exit(
            f"users.py: --runner {option!r} is wrong; expected {RUNNERS}=POOL,NAME or {RUNNERS}-…=POOL,NAME, "
            "where names of pools and runners are of a-z, 0-9 and -"
        )
    return user, targets


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(f"users.py: {message}\n{__doc__}")


if __name__ == "__main__":
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("passwords", type=Path)
    parser.add_argument("prefix", nargs="?", default="taskherd")
    parser.add_argument("--runner", action="append", default=[], metavar="USER=TARGET,TARGET")
    chosen = parser.parse_args()
    runners = dict(map(runner_targets, chosen.runner))
    json.dump(definitions(chosen.passwords, chosen.prefix, runners), sys.stdout, indent=2)
    sys.stdout.write("\n")
