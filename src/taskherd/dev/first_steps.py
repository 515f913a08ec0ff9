"""What to do first once everything is up: a token, and commands that work as they are printed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from taskherd.errors import Unavailable

USER: Final = "alice"
"""An admin in deploy/example-directory.yaml."""
TEMPLATE_VERSION: Final = "7a2d9c11-58e4-4b6f-9f3a-2c8e6d4b1a32"
"""Of the template there whose agent every installation has."""
LIFETIME: Final = "30d"
CREATE: Final = {"template_version_id": TEMPLATE_VERSION, "input": "How large is this program?"}


def token(environ: Mapping[str, str]) -> str:
    """A new token of the example's user; raises Unavailable where none can be made."""
    command = [sys.executable, "-m", "taskherd", "token", "create", "--user", USER, "--expires", LIFETIME]
    done = subprocess.run(command, env=environ, timeout=60, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise Unavailable(f"could not make a token: {done.stderr.strip()}")
    return done.stdout.strip()


def lines(url: str, secret: str) -> list[str]:
    """What to tell the person at the terminal."""
    if not secret:
        return [f"the API is at {url}; `taskherd token create --user NAME` prints a token for it"]
    return [f"the API is at {url}; a token of {USER} for it: {secret}", "try:", *commands(url, secret)]


def commands(url: str, secret: str) -> list[str]:
    """Command lines that create a task and look at it, whole as they stand."""
    asked = f"curl -sS -w '\\n' -H {shlex.quote(f'Coder-Session-Token: {secret}')}"
    tasks = f"{url}/api/v2/tasks"
    return [
        f"{asked} -d {shlex.quote(json.dumps(CREATE))} {tasks}/me",
        f"{asked} {shlex.quote(f'{tasks}?q=owner:me')}",
    ]
