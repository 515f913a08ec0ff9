"""How often a process looks for cyclic garbage."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import gc
from taskherd import garbage_collector

garbage_collector.collect_rarely()
collections = gc.get_stats()[0]["collections"]
created = [[] for _ in range(50_000)]
print(gc.get_freeze_count() > 1_000, gc.get_stats()[0]["collections"] - collections)
"""


def test_existing_objects_are_never_looked_at_and_new_ones_rarely() -> None:
    """Fifty thousand new objects are not reason enough to look for garbage."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "0"]
