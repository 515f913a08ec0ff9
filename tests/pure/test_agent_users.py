"""``taskherd doctor`` on the range of the users of agents; ``tests/runner/test_isolation.py`` uses such users."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskherd.cli.diagnostics.findings import FindingState
from taskherd.cli.diagnostics.machine import check_agent_users


@pytest.mark.parametrize(
    ("lines", "overlaps"),
    [
        ("", False),
        ("alice:100000:65536\n", False),
        ("alice:100000:65536\nbob:165536:65536\n", True),  # Debian's first two users
        ("bob:165536:34464\n", False),
        ("bob:265535:1\n", True),
        ("bob:265536:65536\n", False),
        ("bob:1:4294967295\n", True),
        ("# no entry\nbob\nbob:x:y\n", False),
    ],
)
def test_users_of_agents_belong_to_nobody_else(tmp_path: Path, lines: str, *, overlaps: bool) -> None:
    """A range of which somebody may have an id in a container is an error that names the owner and the file."""
    file, missing = tmp_path / "subuid", tmp_path / "subgid"
    file.write_text(lines)
    found = check_agent_users("200000-265535", (file, missing))
    assert found.state is (FindingState.ERROR if overlaps else FindingState.OK)
    assert (f"bob in {file}" in found.found) is overlaps
    assert check_agent_users("", (file, missing)).state is FindingState.OK
