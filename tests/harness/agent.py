"""The tests' agent: executes the steps in its arguments, one after the other."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


def say(line: str) -> None:
    """Write a line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def report(state: str, message: str) -> None:
    """Report a status to the API, with the agent's token."""
    request = urllib.request.Request(  # noqa: S310 - the API of the test, over http
        f"{os.environ['TASKHERD_API_URL']}/api/v2/workspaceagents/me/app-status",
        data=json.dumps({"app_slug": "", "state": state, "message": message, "uri": ""}).encode(),
        headers={"Coder-Session-Token": os.environ["TASKHERD_AGENT_TOKEN"]},
        method="PATCH",
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - as above
        response.read()


RESPAWN_SECONDS = 60.0
"""Seconds after which a respawning process stops by itself, so that a failing test does not leave it running."""


def chatter(seconds: float) -> None:
    """Print short lines for some time, each by itself."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        say("chatter")
        time.sleep(0.005)


def obey() -> None:
    """Work on each line until SIGINT interrupts that, then wait for the next one, as a program for people does."""
    say("> ")
    while True:
        try:
            line = sys.stdin.readline().rstrip()
            say(f"working on {line}")
            while True:
                sum(range(100_000))
        except KeyboardInterrupt:
            say("^C")


def main(steps: list[str]) -> None:  # noqa: PLR0915 - one case for each verb
    """Execute the steps; each is a verb, with its argument after a colon."""
    for step in steps:
        verb, _, argument = step.partition(":")
        match verb:
            case "say":
                say(argument)
            case "sleep":
                signal.pause() if not argument else time.sleep(float(argument))
            case "echo":
                for line in sys.stdin:
                    say(f"got {line.rstrip()}")
            case "exit":
                sys.exit(int(argument))
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "ignore-sigterm":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case "ignore-sigint":
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            case "obey":
                obey()
            case "env":
                for name in sorted(os.environ):
                    say(f"{name}={os.environ[name]}")
            case "flood":
                chunk = b"x" * 1_000_000
                for _ in range(int(argument)):
                    os.write(1, chunk) == len(chunk) or os.write(1, b"x")
            case "chatter":
                chatter(float(argument))
            case "binary":
                sys.stdout.buffer.write(bytes(range(256)) * 4 + b"\n")
                sys.stdout.flush()
            case "fork":
                for _ in range(int(argument)):
                    subprocess.Popen(["sleep", "1000"], start_new_session=True)
                say("forked")
            case "respawn":
                for _ in range(int(argument)):
                    subprocess.Popen([sys.executable, __file__, "respawning-process"], start_new_session=True)
            case "respawning-process":
                end = time.monotonic() + RESPAWN_SECONDS
                while time.monotonic() < end:  # the parent exits, its child continues in a new session
                    if os.fork():
                        os._exit(0)
                    os.setsid()
                    time.sleep(0.02)
            case "count":
                for number in range(int(argument)):
                    say(f"line {number}")
                    time.sleep(0.01)
            case "report":
                report(*argument.split(":"))
            case "await":
                while not Path(argument).exists():
                    time.sleep(0.02)
            case "file":
                with Path(argument).open("a") as file:
                    file.write("was here\n")
            case _:
                sys.exit(f"unknown step: {step}")


if __name__ == "__main__":
    main(sys.argv[1:])
