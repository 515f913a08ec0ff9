from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from taskherd.runner.outbox import MAX_CONFIRMED_BYTES, MAX_TASK_BYTES, MAX_WRITTEN_BYTES, Budget, Outbox


def open_outbox(path: Path, budget: Budget | None = None) -> Outbox:
    """Open an outbox without a sender."""
    return Outbox(path, budget or Budget(10**9), lambda _: None)


async def test_unconfirmed_reports_survive_a_restart(tmp_path: Path) -> None:
    """They keep their order, and the last checkpoint is restored."""
    path = tmp_path / "outbox.jsonl"
    first = open_outbox(path)
    first.append(["1", "2"], {"offset": 7})
    first.append(["3"])
    second = open_outbox(path)
    assert second.peek(10, 10**6) == [b"1", b"2", b"3"]
    assert second.checkpoint == {"offset": 7}


async def test_an_incomplete_record_is_ignored(tmp_path: Path) -> None:
    """Its reports and its checkpoint are ignored; records that are written after it are read."""
    path = tmp_path / "outbox.jsonl"
    open_outbox(path).append(["1"], {"offset": 1})
    complete = path.read_bytes()
    path.write_bytes(complete + b'[{"offset": 2}, ["2"')
    torn = open_outbox(path)
    assert (torn.peek(9, 99), torn.checkpoint) == ([b"1"], {"offset": 1})
    torn.append(["3"], {"offset": 3})
    again = open_outbox(path)
    assert (again.peek(9, 99), again.checkpoint) == ([b"1", b"3"], {"offset": 3})


@contextmanager
def full_disk(used: int) -> Generator[None]:
    """Let no file of this process grow beyond ``used`` bytes, so that writes fail as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (used, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [0, 10])
async def test_reports_of_a_full_disk_are_saved_when_it_has_room_again(tmp_path: Path, room: int) -> None:
    """The next record takes along what could not be written, in order: its checkpoint is behind those reports."""
    path = tmp_path / "outbox.jsonl"
    outbox = open_outbox(path)
    outbox.append(["1"], {"offset": 1})
    used = path.stat().st_size
    with full_disk(used + room):
        outbox.append(["222222"], {"offset": 2})
        outbox.append(["333333"])
    again = open_outbox(path)
    assert (again.peek(9, 99), again.checkpoint) == ([b"1"], {"offset": 1})
    assert (outbox.is_saved, list(tmp_path.iterdir())) == (False, [path])
    outbox.append(["4"], {"offset": 4})
    again = open_outbox(path)
    assert (again.peek(9, 99), again.checkpoint) == ([b"1", b"222222", b"333333", b"4"], {"offset": 4})
    assert outbox.is_saved


async def test_a_checkpoint_is_not_saved_ahead_of_reports_that_are_not(tmp_path: Path) -> None:
    """While there is room for a record but not for those before it, neither is on disk: both are made again."""
    path = tmp_path / "outbox.jsonl"
    outbox = open_outbox(path)
    outbox.append(["1"], {"offset": 1})
    used = path.stat().st_size
    with full_disk(used):
        outbox.append(["2" * 200], {"offset": 2})
    with full_disk(used + 100):
        outbox.append(["3"], {"offset": 3})
    again = open_outbox(path)
    assert (again.peek(9, 99), again.checkpoint, outbox.is_saved) == ([b"1"], {"offset": 1}, False)


async def test_confirmed_reports_are_removed_from_the_file(tmp_path: Path) -> None:
    """The file is rewritten from time to time without confirmed reports; the checkpoint stays."""
    path = tmp_path / "outbox.jsonl"
    outbox = open_outbox(path)
    for number in range(1000):
        outbox.append([f"{number:01000}"], {"offset": number})
        outbox.confirm(1)
        assert path.stat().st_size < 2 * MAX_CONFIRMED_BYTES
    assert open_outbox(path).checkpoint == {"offset": 999}


async def test_checkpoints_without_reports_do_not_fill_the_disk(tmp_path: Path) -> None:
    """The file is rewritten although nothing was confirmed; what is not confirmed stays in it."""
    path = tmp_path / "outbox.jsonl"
    outbox = open_outbox(path)
    outbox.append(["1", "2"])
    for number in range(200):
        outbox.append([], {"offset": number, "open": "x" * 100_000})
        assert path.stat().st_size < 2 * MAX_WRITTEN_BYTES
    again = open_outbox(path)
    assert (again.peek(9, 99), again.checkpoint["offset"]) == ([b"1", b"2"], 199)


async def test_an_outbox_is_full_at_its_own_limit_or_at_the_common_one(tmp_path: Path) -> None:
    """If one outbox or all together reach their limit, followers wait, but further reports are still accepted."""
    budget = Budget(3000)
    outbox, other = open_outbox(tmp_path / "a", budget), open_outbox(tmp_path / "b", budget)
    outbox.append(["x" * 4000])
    assert outbox.full
    assert other.full
    other.append(["y"])
    assert len(other) == 1
    outbox.confirm(1)
    await other.wait_room()


def open_files(folder: Path) -> list[str]:
    """Return the names of this process's open files in a folder."""
    targets = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sorted(target.name for target in targets if target.parent == folder)


async def test_a_file_is_open_only_while_reports_wait(tmp_path: Path) -> None:
    """A runner has as many outboxes as tasks, also paused ones; a checkpoint alone keeps no file open either."""
    outbox = open_outbox(tmp_path / "outbox.jsonl")
    outbox.append(["1", "2"])
    outbox.confirm(1)
    assert open_files(tmp_path) == ["outbox.jsonl"]
    outbox.confirm(1)
    assert open_files(tmp_path) == []
    outbox.append([], {"offset": 1})
    assert open_files(tmp_path) == []
    outbox.append(["3"])
    assert open_files(tmp_path) == ["outbox.jsonl"]
    outbox.discard()
    assert open_files(tmp_path) == []
    again = open_outbox(tmp_path / "outbox.jsonl")
    assert (again.peek(9, 99), again.checkpoint) == ([b"1", b"2", b"3"], {"offset": 1})


async def test_a_closed_outbox_leaves_its_file_to_the_next_one(tmp_path: Path) -> None:
    """A late confirm or report changes neither the file nor the budget: a supervisor may be restarted meanwhile."""
    budget, path = Budget(10**9), tmp_path / "outbox.jsonl"
    old = open_outbox(path, budget)
    old.append(["a" * (MAX_CONFIRMED_BYTES + 1)])
    old.close()
    new = open_outbox(path, budget)
    new.append(["b"])
    content, used = path.read_bytes(), budget.used
    old.confirm(1)
    old.append(["c" * (MAX_WRITTEN_BYTES + 1)], {"offset": 1})
    old.discard()
    old.close()
    assert (path.read_bytes(), budget.used) == (content, used)
    assert open_outbox(path).peek(9, 10**6)[-1] == b"b"
    assert open_files(tmp_path) == ["outbox.jsonl"]
    new.close()


async def test_a_message_takes_reports_up_to_its_number_and_size(tmp_path: Path) -> None:
    """The first report is taken whatever its size; what does not fit waits, also if a later one would fit."""
    outbox = open_outbox(tmp_path / "outbox.jsonl")
    assert outbox.peek(10, 1000) == []
    outbox.append(["aaaa", "bb", "cccccc", "d"])
    assert outbox.peek(2, 1000) == [b"aaaa", b"bb"]
    assert outbox.peek(10, 6) == [b"aaaa", b"bb"]
    assert outbox.peek(10, 5) == [b"aaaa"]
    assert outbox.peek(10, 1) == [b"aaaa"]
    assert outbox.peek(10, 13) == [b"aaaa", b"bb", b"cccccc", b"d"]
    outbox.confirm(3)
    assert (outbox.peek(10, 1000), len(outbox)) == ([b"d"], 1)


async def test_a_follower_waits_at_the_limit_of_its_task(tmp_path: Path) -> None:
    """At 1 MiB of unconfirmed reports, until enough are confirmed; less is no reason to wait."""
    outbox = open_outbox(tmp_path / "outbox.jsonl")
    outbox.append(["x" * (MAX_TASK_BYTES - 10)])
    full = [outbox.full]
    await outbox.wait_room()
    outbox.append(["y" * 10])
    full.append(outbox.full)
    waiting = asyncio.create_task(outbox.wait_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.confirm(1)
    await waiting
    assert [*full, outbox.full] == [False, True, False]


async def test_the_common_budget_is_released(tmp_path: Path) -> None:
    """By a confirm, a discard, and a close, each by what the outbox held."""
    budget = Budget(100)
    outboxes = [open_outbox(tmp_path / name, budget) for name in ("a", "b", "c")]
    for outbox in outboxes:
        outbox.append(["x" * 30, "y" * 10])
    assert (budget.used, outboxes[0].full) == (120, True)
    waiting = asyncio.create_task(outboxes[2].wait_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    outboxes[0].confirm(1)
    assert budget.used == 90
    await waiting
    outboxes[1].discard()
    assert (budget.used, len(outboxes[1])) == (50, 0)
    outboxes[2].close()
    assert budget.used == 10
    assert Outbox(tmp_path / "c", budget, lambda _: None).full is False
    assert budget.used == 50


async def test_it_is_empty_once_all_is_confirmed(tmp_path: Path) -> None:
    """Or discarded; a runner that stops waits for that."""
    for name in ("a", "b"):
        outbox = open_outbox(tmp_path / name)
        await outbox.wait_empty()
        outbox.append(["1", "2"])
        outbox.confirm(1)
        waiting = asyncio.create_task(outbox.wait_empty())
        await asyncio.sleep(0)
        assert not waiting.done()
        outbox.confirm(1) if name == "a" else outbox.discard()
        await waiting


async def test_an_outbox_is_scheduled_when_it_has_reports(tmp_path: Path) -> None:
    """Also for those of an earlier runner, of which the greatest seq is known; a checkpoint alone has none to send."""
    path = tmp_path / "outbox.jsonl"
    scheduled: list[Outbox] = []
    outbox = Outbox(path, Budget(10**9), scheduled.append)
    assert (scheduled, outbox.last_seq, outbox.is_saved, outbox.checkpoint) == ([], 0, True, {})
    outbox.append([], {"offset": 3})
    assert scheduled == []
    outbox.append([json.dumps({"seq": seq}) for seq in (7, 9, 8)], {"offset": 4})
    assert scheduled == [outbox]
    outbox.append(['"no object"', "{}"])
    outbox.close()
    again = Outbox(path, Budget(10**9), scheduled.append)
    assert (scheduled[2:], again.last_seq, len(again)) == ([again, again], 9, 5)
    assert (again.checkpoint, again.is_saved) == ({"offset": 4}, True)
    (tmp_path / "other.jsonl").write_text('[{}, ["{}", "3"]]\n')
    assert Outbox(tmp_path / "other.jsonl", Budget(10**9), scheduled.append).last_seq == 0


async def test_the_file_is_readable_by_its_user_only(tmp_path: Path) -> None:
    """Reports contain what the agent was told; a rewritten file is no exception, and nothing is left beside it."""
    path = tmp_path / "outbox.jsonl"
    outbox = open_outbox(path)
    outbox.append(["1"], {"offset": 1})
    assert path.stat().st_mode & 0o777 == 0o600
    outbox.append(["2" * (MAX_CONFIRMED_BYTES + 1)])
    before = path.stat().st_ino
    outbox.confirm(2)
    assert path.stat().st_ino != before
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text()) == [{"offset": 1}, []]
    assert list(tmp_path.iterdir()) == [path]


async def test_up_to_64_kib_of_confirmed_reports_stay_in_the_file(tmp_path: Path) -> None:
    """So that it is not rewritten for each report."""
    path = tmp_path / "outbox.jsonl"
    outbox = open_outbox(path)
    outbox.append(["a" * MAX_CONFIRMED_BYTES, "b", "c"])
    size = path.stat().st_size
    outbox.confirm(1)
    assert path.stat().st_size == size
    outbox.confirm(1)
    assert json.loads(path.read_text()) == [{}, ["c"]]


async def test_nothing_is_appended_after_a_discard(tmp_path: Path) -> None:
    """Its task is being deleted; a late confirm finds nothing to remove."""
    outbox = open_outbox(tmp_path / "outbox.jsonl")
    outbox.append(["1"])
    outbox.discard()
    outbox.append(["2"], {"offset": 2})
    outbox.confirm(1)
    assert (len(outbox), outbox.checkpoint) == (0, {"offset": 2})
    assert "2" not in (tmp_path / "outbox.jsonl").read_text()
