from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path
from typing import Never

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.runner.agents import output
from taskherd.runner.segments import SegmentWriter

TEXTS = st.lists(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"])), max_size=20)


def lines(chunks: list[bytes]) -> list[str]:
    """Return all lines of these chunks."""
    splitter = output.LineSplitter()
    complete = [line for chunk in chunks for line in splitter.feed(chunk)]
    return [*complete, splitter.flush()] if splitter.pending or splitter.skipped else complete


@given(TEXTS, st.lists(st.integers(0, 200)))
def test_lines_do_not_depend_on_the_chunks(texts: list[str], cuts: list[int]) -> None:
    """The lines are the same however the bytes are split into chunks."""
    whole = "".join(f"{text}\n" for text in texts).encode()
    offsets = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    assert lines([whole[start:end] for start, end in pairwise(offsets)]) == texts


def test_a_long_line_is_cut_and_the_rest_counted() -> None:
    """Its start is kept and the number of dropped bytes reported; the buffer never exceeds ``MAX_LINE``."""
    splitter = output.LineSplitter()
    split = []
    for _ in range(1000):
        split += list(splitter.feed(b"x" * 10_000))
        assert splitter.pending <= output.MAX_LINE
    split += list(splitter.feed(b"\nshort\n"))
    assert [len(split[0]), *split[1:]] == [
        output.MAX_LINE + 1,
        f"… ({10_000_000 - output.MAX_LINE} more bytes of this line were dropped)",
        "short",
    ]


def test_a_restart_in_the_middle_of_a_long_line_keeps_skipping_it() -> None:
    """The next reader continues in the middle of a line that is too long."""
    splitter = output.LineSplitter(skipped=5)
    assert list(splitter.feed(b"yyy\nnext\n")) == ["… (8 more bytes of this line were dropped)", "next"]


def test_a_line_is_rendered_as_by_a_terminal() -> None:
    """Colours, cursor moves and text overwritten after a carriage return are removed."""
    assert output.rendered_line("\x1b[1;31mred\x1b[0m \x1b]0;title\x07text\r") == "red text"
    assert output.rendered_line("10%\r50%\r100%") == "100%"


@given(st.lists(st.binary(max_size=50), max_size=30), st.integers(1, 40), st.integers(1, 5))
def test_bytes_are_read_back_or_counted_as_missing(
    tmp_path_factory: object, chunks: list[bytes], segment: int, keep: int
) -> None:
    """Every byte, read from the start, is either returned, in order, or counted as missing."""
    folder = Path(str(tmp_path_factory.mktemp("output")))  # type: ignore[attr-defined]
    writer = SegmentWriter(str(folder), segment, keep)
    for chunk in chunks:
        writer.write(chunk)
    complete = b"".join(chunks)
    offset, missing, read = 0, 0, b""
    while (piece := output.read(folder, offset, 7)).end != offset:
        missing += piece.missing
        read += piece.data
        offset = piece.end
    assert offset == len(complete) == output.size(folder)
    assert missing + len(read) == len(complete)
    assert complete.endswith(read)
    assert missing <= max(0, len(complete) - segment * (keep - 1))
    assert sum(path.stat().st_size for path in folder.iterdir()) <= segment * keep


@given(st.lists(st.binary(max_size=50), max_size=30), st.integers(1, 40), st.integers(1, 5))
def test_unread_output_is_kept(tmp_path_factory: object, chunks: list[bytes], segment: int, keep: int) -> None:
    """With ``keeps_unread`` no byte is dropped: what the segments have no room for is returned, to be written later."""
    folder = Path(str(tmp_path_factory.mktemp("output")))  # type: ignore[attr-defined]
    writer = SegmentWriter(str(folder), segment, keep, keeps_unread=True)
    read = waiting = b""
    for chunk in chunks:
        waiting = writer.write(waiting + chunk)
        assert len(list(folder.iterdir())) <= keep
        assert sum(path.stat().st_size for path in folder.iterdir()) <= segment * keep
        if waiting:  # the reader reads everything, and deletes it
            while (piece := output.read(folder, len(read), 7)).data:
                read += piece.data
            for path in folder.iterdir():
                path.unlink()
    assert writer.write(waiting, beyond_limit=True) == b""
    while (piece := output.read(folder, len(read), 7)).data:
        assert not piece.missing
        read += piece.data
    assert read == b"".join(chunks)
    assert writer.dropped == 0


def written(folder: Path) -> dict[str, bytes]:
    """Return what was written, by where it begins."""
    return {path.name.lstrip("0") or "0": path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_oldest_segments_make_room(tmp_path: Path) -> None:
    """Those of output that nobody waits for, unless they are gone already; only this user may read them."""
    writer = SegmentWriter(str(tmp_path), 4, 2)
    assert writer.write(b"abcdefgh") == b""
    assert (written(tmp_path), writer.total) == ({"0": b"abcd", "4": b"efgh"}, 8)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    full = writer._file
    assert writer.write(b"i") == b""
    assert writer._file == full, "a segment that is full is closed before the next one is opened"
    assert written(tmp_path) == {"4": b"efgh", "8": b"i"}
    for path in tmp_path.iterdir():
        path.unlink()
    assert writer.write(b"jklmnopqrst", beyond_limit=True) == b""
    assert written(tmp_path) == {"12": b"mnop", "16": b"qrst"}
    assert (writer.total, writer.dropped) == (20, 0)


def test_unread_segments_keep_what_follows_waiting(tmp_path: Path) -> None:
    """Until the oldest is read, and deleted; beyond the limit there is no later."""
    writer = SegmentWriter(str(tmp_path), 4, 2, keeps_unread=True)
    assert writer.write(b"abcdefghij") == b"ij"
    assert writer.write(b"ij") == b"ij"
    (tmp_path / f"{4:020d}").unlink()
    assert writer.write(b"ij") == b"ij"
    (tmp_path / f"{0:020d}").unlink()
    assert writer.write(b"ij") == b""
    assert writer.write(b"klmnopqr") == b"qr"
    assert written(tmp_path) == {"8": b"ijkl", "12": b"mnop"}
    assert writer.write(b"qrstuv", beyond_limit=True) == b""
    assert written(tmp_path) == {"8": b"ijkl", "12": b"mnop", "16": b"qrst", "20": b"uv"}
    assert (writer.total, writer.dropped) == (22, 0)


@pytest.mark.parametrize(
    ("keeps_unread", "beyond_limit", "is_later"), [(False, False, False), (True, False, True), (True, True, False)]
)
def test_what_cannot_be_written_is_dropped_or_written_later(
    tmp_path: Path, *, keeps_unread: bool, beyond_limit: bool, is_later: bool
) -> None:
    """What is dropped shows as a gap, after which another segment begins."""
    writer = SegmentWriter(str(tmp_path), 100, 9, keeps_unread=keeps_unread)
    assert writer.write(b"abc") == b""
    file = writer._file
    with (tmp_path / f"{0:020d}").open("rb") as read_only:
        kept = os.dup(file)
        os.dup2(read_only.fileno(), file)
    assert writer.write(b"defg", beyond_limit=beyond_limit) == (b"defg" if is_later else b"")
    assert (writer.total, writer.dropped) == ((3, 0) if is_later else (7, 4))
    if is_later:
        os.dup2(kept, file)
    else:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)
    os.close(kept)
    assert writer.write(b"hij") == b""
    assert written(tmp_path) == ({"0": b"abchij"} if is_later else {"0": b"abc", "7": b"hij"})


def test_a_chunk_is_written_until_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the rest of it waits, or is dropped."""
    write = os.write
    room = [2, 1]

    def full(file: int, data: bytes) -> int:
        if not room:
            raise OSError(28, "No space left on device")
        return write(file, data[: room.pop(0)])

    writer = SegmentWriter(str(tmp_path), 100, 9, keeps_unread=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert writer.write(b"abcdef") == b"def"
    assert (written(tmp_path), writer.total, writer.dropped) == ({"0": b"abc"}, 3, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert writer.write(b"def", beyond_limit=True) == b""
    assert (writer.total, writer.dropped) == (6, 3)


def test_a_segment_that_cannot_be_closed_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is written nevertheless."""
    writer = SegmentWriter(str(tmp_path), 2, 9)
    writer.write(b"ab")
    close = os.close

    def fail(descriptor: int) -> Never:
        close(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        assert writer.write(b"c") == b""
    assert written(tmp_path) == {"0": b"ab", "2": b"c"}


def segments(folder: Path, **contents: bytes) -> Path:
    """Write segments, named by an underscore and where they start."""
    for name, content in contents.items():
        (folder / f"{int(name[1:]):020d}").write_bytes(content)
    return folder


def test_a_gap_between_two_segments_is_missing(tmp_path: Path) -> None:
    """A full disk takes no more of a segment; the reader goes on with the next one, and says how much is missing."""
    folder = segments(tmp_path, _0=b"abc", _10=b"def")
    assert output.read(folder, 0, 99) == output.OutputChunk(b"abc", 0, 3)
    assert output.read(folder, 3, 99) == output.OutputChunk(b"", 7, 10)
    assert output.read(folder, 10, 2) == output.OutputChunk(b"de", 0, 12)
    assert output.read(folder, 12, 99) == output.OutputChunk(b"f", 0, 13)
    assert output.read(folder, 13, 99) == output.OutputChunk(b"", 0, 13)


def test_a_segment_that_cannot_be_read_now_is_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for want of descriptors: it is read the next time, and nothing of it is missing."""
    (tmp_path / f"{0:020d}").write_bytes(b"one\n")
    (tmp_path / f"{4:020d}").write_bytes(b"two\n")

    def fail(path: str, *_: object, **__: object) -> Never:
        raise OSError(errno.EMFILE, "Too many open files", path)

    with monkeypatch.context() as patch:
        for call in ("builtins.open", "os.listdir"):
            patch.setattr(call, fail)
            with pytest.raises(OSError, match="Too many open files"):
                output.read(tmp_path, 0, 100)
        with pytest.raises(OSError, match="Too many open files"):
            output.size(tmp_path)
    found = output.read(tmp_path, 0, 100)
    assert (found.data, found.missing, found.end) == (b"one\n", 0, 4)


def test_output_that_was_deleted_is_missing(tmp_path: Path) -> None:
    """Reading begins with the first segment that is left; without any there is no output yet."""
    assert output.read(tmp_path / "none", 5, 9) == output.OutputChunk(b"", 0, 5)
    assert (output.size(tmp_path / "none"), output.tail(tmp_path / "none", 9)) == (0, "")
    folder = segments(tmp_path, _7=b"hij", _10=b"k")
    assert output.read(folder, 2, 99) == output.OutputChunk(b"hij", 5, 10)
    assert output.size(folder) == 11


def test_what_has_been_read_is_discarded(tmp_path: Path) -> None:
    """A segment goes once all of it was read, but never the last one, to which the shim still writes."""
    folder = segments(tmp_path, _0=b"ab", _2=b"cd", _4=b"ef")
    (folder / "note").write_text("no segment")
    for offset, left in ((1, [0, 2, 4]), (2, [2, 4]), (3, [2, 4]), (6, [4]), (6, [4])):
        output.discard(folder, offset)
        assert sorted(int(path.name) for path in folder.iterdir() if path.name != "note") == left


def test_the_tail_is_the_end_of_the_output(tmp_path: Path) -> None:
    """Over the ends of segments, at most as many bytes as wanted, and text in any case."""
    folder = segments(tmp_path, _0=b"abcd", _4=b"efgh", _8=b"ij")
    assert [output.tail(folder, limit) for limit in (1, 2, 3, 7, 10, 99)] == [
        "j", "ij", "hij", "defghij", "abcdefghij", "abcdefghij"
    ]  # fmt: skip
    assert output.tail(segments(tmp_path, _10=b"\xff"), 2) == "j\ufffd"


def test_the_tail_does_not_grow_with_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written while it is read is no part of it."""
    segment, read = tmp_path / f"{0:020d}", output.read
    segment.write_text("0123456789")

    def write_more(folder: Path, offset: int, limit: int) -> output.OutputChunk:
        chunk = read(folder, offset, limit)
        with segment.open("a") as file:
            file.write("more")
        return chunk

    monkeypatch.setattr(output, "read", write_more)
    assert output.tail(tmp_path, 6) == "456789"


def test_the_size_of_a_segment_that_vanishes_is_where_it_starts(tmp_path: Path) -> None:
    """The shim may delete it between the two looks."""
    (tmp_path / f"{12:020d}").symlink_to(tmp_path / "vanished")
    assert output.size(tmp_path) == 12
    assert output.read(tmp_path, 12, 9) == output.OutputChunk(b"", 0, 12)


def test_a_line_of_the_longest_length_is_kept_whole() -> None:
    """One byte more, and the rest is counted."""
    for more, expected in ((0, ["x" * output.MAX_LINE]), (1, ["x" * output.MAX_LINE + "…"])):
        splitter = output.LineSplitter()
        text = b"x" * (output.MAX_LINE + more)
        assert [*splitter.feed(text[:10]), *splitter.feed(text[10:] + b"\n")][:1] == expected
        assert (splitter.pending, splitter.skipped) == (0, 0)
