from __future__ import annotations

from pathlib import Path

from taskherd.runner.outbox import MAX_CONFIRMED_BYTES, MAX_WRITTEN_BYTES, Budget, Outbox


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
