from __future__ import annotations

from itertools import pairwise
from pathlib import Path

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


@given(st.lists(st.binary(max_size=50), max_size=30), st.integers(1, 40), st.integers(1, 5))
def test_unread_output_is_kept(tmp_path_factory: object, chunks: list[bytes], segment: int, keep: int) -> None:
    """With ``keeps_unread`` no byte is dropped: what the segments have no room for is returned, to be written later."""
    folder = Path(str(tmp_path_factory.mktemp("output")))  # type: ignore[attr-defined]
    writer = SegmentWriter(str(folder), segment, keep, keeps_unread=True)
    read = waiting = b""
    for chunk in chunks:
        waiting = writer.write(waiting + chunk)
        assert len(list(folder.iterdir())) <= keep
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
