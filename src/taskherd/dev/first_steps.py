"""First steps after ``taskherd dev`` has started: a token, and commands that can be pasted as printed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from taskherd.errors import Unavailable

USER: Final = "alice"
"""An administrator in deploy/example-directory.yaml."""
TEMPLATE_VERSION: Final = "7a2d9c11-58e4-4b6f-9f3a-2c8e6d4b1a32"
"""The version of the template ``counts`` there, whose agent is part of taskherd."""
LIFETIME: Final = "30d"
CREATE: Final = {"template_version_id": TEMPLATE_VERSION, "input": "How large is this program?"}


def token(environ: Mapping[str, str], user: str = USER) -> str:
    """Create a token of a user of the example; raise ``Unavailable`` if that fails."""
    command = [sys.executable, "-m", "taskherd", "token", "create", "--user", user, "--expires", LIFETIME]
    process = subprocess.run(command, env=environ, timeout=60, check=False, capture_output=True, text=True)
    if process.returncode != 0:
        raise Unavailable(f"could not create a token: {process.stderr.strip()}")
    return process.stdout.strip()


def lines(url: str, secret: str) -> list[str]:
    """Return the lines to print: the URL of board and API, a token, and commands to try."""
    if not secret:
        return [f"the board and the API are at {url}; create a token with `taskherd token create --user NAME`"]
    return [
        f"the board is at {url} (open it in a browser, and sign in with the token), the API below {url}/api/v2",
        f"API token for {USER}: {secret}",
        "try it:",
        *commands(url, secret),
    ]


def commands(url: str, secret: str) -> list[str]:
    """Return two complete command lines that create a task and list it."""
    curl = f"curl -sS -w '\\n' -H {shlex.quote(f'Coder-Session-Token: {secret}')}"
    tasks = f"{url}/api/v2/tasks"
    return [
        f"{curl} -d {shlex.quote(json.dumps(CREATE))} {tasks}/me",
        f"{curl} {shlex.quote(f'{tasks}?q=owner:me')}",
    ]
