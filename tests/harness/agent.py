"""The tests' agent: does what its words say, one after the other."""

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
    """Tell the API, with the token that the runner gave us."""
    request = urllib.request.Request(  # noqa: S310 - the API of the test, over http
        f"{os.environ['TASKHERD_API_URL']}/api/v2/workspaceagents/me/app-status",
        data=json.dumps({"app_slug": "", "state": state, "message": message, "uri": ""}).encode(),
        headers={"Coder-Session-Token": os.environ["TASKHERD_AGENT_TOKEN"]},
        method="PATCH",
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
        answer.read()


HYDRA_LIVES = 60.0
"""Seconds after which a hydra dies by itself, so that a test that fails leaves no machine at its mercy."""


def main(words: list[str]) -> None:
    """Do what each word says: a verb, and after a colon what it needs."""
    for word in words:
        verb, _, rest = word.partition(":")
        match verb:
            case "say":
                say(rest)
            case "sleep":
                signal.pause() if not rest else time.sleep(float(rest))
            case "echo":
                for line in sys.stdin:
                    say(f"got {line.rstrip()}")
            case "exit":
                sys.exit(int(rest))
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "deaf":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case "env":
                for name in sorted(os.environ):
                    say(f"{name}={os.environ[name]}")
            case "flood":
                chunk = b"x" * 1_000_000
                for _ in range(int(rest)):
                    os.write(1, chunk) == len(chunk) or os.write(1, b"x")
            case "binary":
                sys.stdout.buffer.write(bytes(range(256)) * 4 + b"\n")
                sys.stdout.flush()
            case "fork":
                for _ in range(int(rest)):
                    subprocess.Popen(["sleep", "1000"], start_new_session=True)
                say("forked")
            case "hydra":
                for _ in range(int(rest)):
                    subprocess.Popen([sys.executable, __file__, "head"], start_new_session=True)
            case "head":
                end = time.monotonic() + HYDRA_LIVES
                while (
                    time.monotonic() < end
                ):  # always somebody else: the parent ends, the child goes on in a session of its own
                    if os.fork():
                        os._exit(0)
                    os.setsid()
                    time.sleep(0.02)
            case "count":
                for number in range(int(rest)):
                    say(f"line {number}")
                    time.sleep(0.01)
            case "report":
                report(*rest.split(":"))
            case "await":
                while not Path(rest).exists():
                    time.sleep(0.02)
            case "file":
                with Path(rest).open("a") as file:
                    file.write("was here\n")
            case _:
                sys.exit(f"what is {word}?")


if __name__ == "__main__":
    main(sys.argv[1:])
