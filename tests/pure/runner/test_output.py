from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from taskherd.runner.agents import output
from taskherd.runner.shim import Output

TEXTS = st.lists(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"])), max_size=20)


def lines(chunks: list[bytes]) -> list[str]:
    """All lines of these chunks."""
    cutter = output.LineSplitter()
    found = [line for chunk in chunks for line in cutter.feed(chunk)]
    return [*found, cutter.flush()] if cutter.pending or cutter.skipped else found


@given(TEXTS, st.lists(st.integers(0, 200)))
def test_lines_do_not_depend_on_how_they_came(texts: list[str], cuts: list[int]) -> None:
    """However the bytes are cut into chunks, the lines are the same."""
    whole = "".join(f"{text}\n" for text in texts).encode()
    places = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    assert lines([whole[start:end] for start, end in pairwise(places)]) == texts


def test_a_line_of_any_size_is_cut_and_counted() -> None:
    """Its beginning is kept, and how much more there was is said; no more than one bound is ever held."""
    cutter = output.LineSplitter()
    found = []
    for _ in range(1000):
        found += list(cutter.feed(b"x" * 10_000))
        assert cutter.pending <= output.MAX_LINE
    found += list(cutter.feed(b"\nshort\n"))
    assert [len(found[0]), *found[1:]] == [
        output.MAX_LINE + 1,
        f"… ({10_000_000 - output.MAX_LINE} more bytes in that line)",
        "short",
    ]


def test_a_line_that_was_cut_before_a_restart_goes_on_being_skipped() -> None:
    """The next reader knows that it stands in the middle of a line that is too long."""
    cutter = output.LineSplitter(skipped=5)
    assert list(cutter.feed(b"yyy\nnext\n")) == ["… (8 more bytes in that line)", "next"]


def test_a_line_is_shown_as_a_terminal_would_leave_it() -> None:
    """Colours and cursor moves are gone, and so is what a carriage return has overwritten."""
    assert output.rendered_line("\x1b[1;31mred\x1b[0m \x1b]0;title\x07text\r") == "red text"
    assert output.rendered_line("10%\r50%\r100%") == "100%"


@given(st.lists(st.binary(max_size=50), max_size=30), st.integers(1, 40), st.integers(1, 5))
def test_what_was_kept_is_read_back_and_what_was_not_is_counted(
    tmp_path_factory: object, chunks: list[bytes], segment: int, keep: int
) -> None:
    """Read from the start, every byte is either there, in order, or counted as missing."""
    folder = Path(str(tmp_path_factory.mktemp("output")))  # type: ignore[attr-defined]
    written = Output(folder, segment, keep)
    for chunk in chunks:
        written.write(chunk)
    whole = b"".join(chunks)
    offset, missing, read = 0, 0, b""
    while (piece := output.read(folder, offset, 7)).end != offset:
        missing += piece.missing
        read += piece.data
        offset = piece.end
    assert offset == len(whole) == output.size(folder)
    assert missing + len(read) == len(whole)
    assert whole.endswith(read)
    assert missing <= max(0, len(whole) - segment * (keep - 1))
