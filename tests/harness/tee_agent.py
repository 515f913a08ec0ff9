"""Run an agent and record what it reads and writes: ``python tee_agent.py TRANSCRIPT COMMAND…``.

The transcript has a JSON line for each line, ``{"direction": "in"|"out", "at": seconds, "text": …}``: ``in`` is what
the agent reads, ``out`` what it writes, in the order in which they passed.
"""

import json
import os
import subprocess
import sys
import threading
import time
from typing import IO

STARTED = time.monotonic()


def main(transcript: str, command: list[str]) -> int:
    """Run the command until it exits, and return its exit status."""
    agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert agent.stdin
    assert agent.stdout
    lock = threading.Lock()
    with open(transcript, "a", encoding="utf-8") as file:  # noqa: PTH123 - a script

        def pass_on(direction: str, source: IO[bytes], target: IO[bytes]) -> None:
            for line in source:
                record = {"direction": direction, "at": round(time.monotonic() - STARTED, 3), "text": line.decode()}
                with lock:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    file.flush()
                target.write(line)
                target.flush()

        threading.Thread(target=pass_on, args=("in", sys.stdin.buffer, agent.stdin), daemon=True).start()
        pass_on("out", agent.stdout, sys.stdout.buffer)
        status = agent.wait()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
