"""What the shim writes without the module ``json``, and what it reads from /proc."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from taskherd.runner import log_ids, process_table, shim

values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])) | st.sampled_from(
    ["\\", '"', "~", "\x7f"]
)


@given(st.dictionaries(st.text("abc_", min_size=1), values | texts))
def test_records_are_json(record: dict[str, object]) -> None:
    """What is read is what was written, whatever an error says; it is ASCII, as the file is."""
    encoded = shim.encode(record)
    assert encoded.isascii()
    assert json.loads(encoded) == record


def test_characters_beyond_the_first_plane_are_replaced() -> None:
    """They would need two escapes; the last character of the plane needs one."""
    assert json.loads(shim.encode({"a": "x\U0001f600\uffffy"})) == {"a": "x?\uffffy"}


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    """Nothing else is left in the folder."""
    path = tmp_path / "started.json"
    for content in ("{}", '{"pid": 7}'):
        shim.write_atomically(str(path), content)
        assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


def test_descendants_are_found_at_any_depth() -> None:
    """Also if pids were reused so that parents form a circle; the root is no descendant of its own."""
    parents = {2: 1, 3: 2, 4: 3, 5: 1, 6: 9, 8: 7, 7: 8}
    assert process_table.descendants_in(parents, 1) == {2, 3, 4, 5}
    assert process_table.descendants_in(parents, 3) == {4}
    assert process_table.descendants_in(parents, 7) == {8, 7}
    assert process_table.descendants_in(parents, 6) == set()


def test_a_process_is_found_whatever_its_name_is(tmp_path: Path) -> None:
    """The name in /proc/PID/stat may contain anything; a zombie is no process, but has a start time."""
    program = tmp_path / ") Z 0 ("
    program.symlink_to("/bin/sh")
    command = [str(program), "-c", "echo up; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        assert process_table.parents()[process.pid] == os.getpid()
        assert process.pid in process_table.descendants(os.getpid())
        begun = process_table.start_ticks(process.pid)
        assert process_table.start_ticks(os.getpid()) <= begun
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.pid not in process_table.parents()
        assert process_table.start_ticks(process.pid) == begun


def test_a_signal_reaches_all_that_are_left() -> None:
    """One that has ended meanwhile does not keep it from the others."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as gone:
        assert gone.stdin
        gone.stdin.close()
        gone.wait()
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as left:
        process_table.send_signal({gone.pid, left.pid}, 9)
        assert left.wait() == -9


def test_ids_of_log_entries_are_the_same_in_every_release() -> None:
    """An entry replaces one with its id, so the ranges of different sources must not overlap, nor ever change."""
    ids = (log_ids.FIRST_ERROR_ID, log_ids.FIRST_NOTICE_ID, log_ids.LAST_OUTPUT_ID, log_ids.FIRST_INPUT_ID)
    assert ids == (2**40, 2**41, 2**42, 2**43)
