from __future__ import annotations

import subprocess
import sys

import pytest

SOFT, HARD = 600, 1200
START = """
import resource, sys
import uvloop
from taskherd import open_files
from taskherd.settings import Settings
from taskherd.{process}.app import main

def run(coroutine):
    coroutine.close()
    print(open_files.INHERITED, *resource.getrlimit(resource.RLIMIT_NOFILE))

uvloop.run = run
main(Settings(database_url="postgresql://localhost/x", amqp_url="amqp://localhost", secret_key="x" * 32))
"""


@pytest.mark.parametrize("process", ["api", "runner"])
def test_a_process_may_open_as_many_files_as_its_hard_limit_allows(process: str) -> None:
    """It raises the soft limit before it starts, and knows the one that it was started with, which agents are given."""
    limited = ["prlimit", f"--nofile={SOFT}:{HARD}", sys.executable, "-c", START.format(process=process)]
    run = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)
    assert (run.stdout.split(), run.stderr) == ([str(SOFT), str(HARD), str(HARD)], "")
