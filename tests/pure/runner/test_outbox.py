from __future__ import annotations

from pathlib import Path

from taskherd.runner.outbox import MAX_SENT_BYTES, Budget, Outbox


def opened(path: Path, budget: Budget | None = None) -> Outbox:
    """An outbox that nobody sends from."""
    return Outbox(path, budget or Budget(10**9), lambda _: None)


async def test_what_was_not_sent_is_there_after_a_restart(tmp_path: Path) -> None:
    """In order, with the mark of the last that had one."""
    path = tmp_path / "outbox.jsonl"
    first = opened(path)
    first.append(["1", "2"], {"offset": 7})
    first.append(["3"])
    second = opened(path)
    assert second.peek(10, 10**6) == [b"1", b"2", b"3"]
    assert second.checkpoint == {"offset": 7}


async def test_a_record_that_was_not_written_to_its_end_does_not_count(tmp_path: Path) -> None:
    """Neither its reports nor its mark, and what is written after it does."""
    path = tmp_path / "outbox.jsonl"
    opened(path).append(["1"], {"offset": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + b'[{"offset": 2}, ["2"')
    torn = opened(path)
    assert (torn.peek(9, 99), torn.checkpoint) == ([b"1"], {"offset": 1})
    torn.append(["3"], {"offset": 3})
    again = opened(path)
    assert (again.peek(9, 99), again.checkpoint) == ([b"1", b"3"], {"offset": 3})


async def test_the_file_does_not_grow_with_what_was_sent(tmp_path: Path) -> None:
    """What was sent is written out of it now and then; the mark stays."""
    path = tmp_path / "outbox.jsonl"
    outbox = opened(path)
    for number in range(1000):
        outbox.append([f"{number:01000}"], {"offset": number})
        outbox.confirm(1)
        assert path.stat().st_size < 2 * MAX_SENT_BYTES
    assert opened(path).checkpoint == {"offset": 999}


async def test_more_than_its_bounds_is_not_asked_for(tmp_path: Path) -> None:
    """When one outbox, or all together, hold too much, followers wait; what must be said is taken still."""
    budget = Budget(3000)
    outbox, other = opened(tmp_path / "a", budget), opened(tmp_path / "b", budget)
    outbox.append(["x" * 4000])
    assert outbox.full
    assert other.full
    other.append(["y"])
    assert len(other) == 1
    outbox.confirm(1)
    await other.wait_room()
