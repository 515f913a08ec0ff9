"""Play a recorded agent that runs once: ``python replay_events.py TRANSCRIPT POSITION``.

``tests/real_agents/record_codex.py`` describes the transcript, which may be of several runs; the file POSITION says
how many came before. The agent reads its stdin, which must be the recorded prompt, writes byte by byte what the real
one wrote, and exits with its status. One that was interrupted waits for SIGINT first.
"""

import json
import os
import signal
import sys
from pathlib import Path


def interrupted_run() -> None:
    """Wait until this process is interrupted."""
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.pause()


def main(transcript: str, position: Path) -> int:
    """Play the next run of the transcript, and return its exit status."""
    number = int(position.read_text()) if position.exists() else 0
    position.write_text(str(number + 1))
    runs = Path(transcript).read_text(encoding="utf-8").split('{"direction": "in"')[1:]
    records = [json.loads(line) for line in f'{{"direction": "in"{runs[number]}'.splitlines()]
    if sys.stdin.read() != records[0]["text"]:
        return 9
    for record in records[1:-1]:
        for byte in record["text"].encode():
            os.write(1, bytes([byte]))
    if '"turn.' not in records[-2]["text"]:
        interrupted_run()
    return int(records[-1]["text"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
