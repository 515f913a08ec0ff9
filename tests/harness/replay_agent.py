"""Play a recorded agent: ``python replay_agent.py TRANSCRIPT POSITION``; ``tee_agent.py`` describes the file.

It writes byte by byte what the agent wrote, each part once what the agent had read before it has been read. What it
reads must be the same method or response with the same id as in the recording, or it exits with status 9. A transcript
may be of several agents, one after the other; each begins with ``initialize``. The file POSITION says how many came
before.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def essence(line: str) -> tuple[object, object]:
    """Return what must be the same in a message: its method and id."""
    message: dict[str, Any] = json.loads(line)
    return message.get("method"), message.get("id")


def runs(records: list[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    """Yield the records of each agent."""
    run: list[dict[str, str]] = []
    for record in records:
        if record["direction"] == "in" and essence(record["text"])[0] == "initialize" and run:
            yield run
            run = []
        run.append(record)
    yield run


def main(transcript: str, position: Path) -> None:
    """Play the next agent of the transcript, then wait until stdin ends."""
    records = [json.loads(line) for line in Path(transcript).read_text(encoding="utf-8").splitlines()]
    number = int(position.read_text()) if position.exists() else 0
    position.write_text(str(number + 1))
    for record in list(runs(records))[number]:
        if record["direction"] == "out":
            for byte in record["text"].encode():
                os.write(1, bytes([byte]))
        else:
            line = sys.stdin.readline()
            if essence(line) != essence(record["text"]):
                sys.stderr.write(f"expected {record['text'][:200]}, got {line[:200]}\n")
                sys.exit(9)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
