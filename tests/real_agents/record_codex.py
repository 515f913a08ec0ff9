"""Record Codex by its own events: ``python -m tests.real_agents.record_codex TRANSCRIPT``, with ``codex`` in the PATH.

The command is that of the shipped template, and the model is scripted. The transcript has a JSON line for each prompt
(``{"direction": "in", "text": …}``), for each line that Codex wrote (``out``) and for each exit (``exit``, with the
exit status in ``text``); each run after the first continues the session of the one before it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from taskherd.dev.ports import find_free
from tests.harness.templates import shipped_run
from tests.real_agents.environment import environment

NOBODY = 65_534
PATCH = "apply_patch <<'EOF'\n*** Begin Patch\n*** Add File: new.txt\n+hello\n*** End Patch\nEOF"
PROMPTS = (
    "think: I ponder it.\nrun: echo it is done > result; cat result",
    "run: cat result missing",
    f"run: {PATCH}",
    "refuse: Credit balance is too low",
    "run: sleep 60",
)
"""The prompts of the runs; the last one is interrupted."""


def run_once(url: str, work: Path, prompt: str, session: str | None) -> list[dict[str, Any]]:
    """Run Codex once, and return the records of the run."""
    command = [each.replace("{session}", session or "") for each in shipped_run("codex-exec.yaml")["command"]]
    if session is not None:
        command[-1:] = ["resume", session, "-"]
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
    variables = {"PATH": os.environ["PATH"], **environment(url)}
    process = subprocess.Popen(
        [*user, *command],
        cwd=work,
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(prompt)
    process.stdin.close()
    records = [{"direction": "in", "text": prompt}]
    for line in process.stdout:
        records.append({"direction": "out", "text": line})
        if "sleep 60" in line and "item.started" in line:
            os.killpg(process.pid, signal.SIGINT)
    return [*records, {"direction": "exit", "text": str(process.wait())}]


def main(transcript: Path) -> None:
    """Carry out the prompts, each in the session of the one before it, and write the transcript."""
    (port,) = find_free([18_972])
    model = subprocess.Popen([sys.executable, "-m", "tests.real_agents.model", str(port)])
    try:
        time.sleep(3)
        with tempfile.TemporaryDirectory(prefix="record-") as folder:
            work = Path(folder) / "project"
            work.mkdir()
            Path(folder).chmod(0o755)
            for each in (folder, work):
                os.chown(each, *((NOBODY, NOBODY) if os.geteuid() == 0 else (-1, -1)))
            records: list[dict[str, Any]] = []
            session = None
            for prompt in PROMPTS:
                records += run_once(f"http://127.0.0.1:{port}", work, prompt, session)
                session = session or next(
                    json.loads(each["text"])["thread_id"] for each in records if "thread_id" in each["text"]
                )
            lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records)
            transcript.write_text(lines.replace(str(work), "/work"))
    finally:
        model.kill()
        model.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
