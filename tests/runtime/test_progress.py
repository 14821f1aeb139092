import io
import re
from collections.abc import Iterator

import pytest

from kldistill.runtime import progress
from kldistill.runtime.progress import Bar, count, duration, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KLDISTILL_PROGRESS", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_items_pass_through_unchanged_and_lazily() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number

    stream = track(source(), "Counting")
    assert next(stream) == 0
    assert taken == [0]
    assert list(stream) == [1, 2, 3, 4]


def test_lines_without_a_terminal_come_at_most_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), io.StringIO()
    with Bar("Encoding", total=100, unit="documents", stream=out) as bar:
        for _ in range(50):
            clock.now += 1.0
            bar.advance(2)
    lines = out.getvalue().splitlines()
    assert lines[0] == "Encoding: 20 of 100 documents (20%), 2 documents/s, 40s left"
    assert len(lines) == 5


def test_what_is_noted_stands_in_the_lines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), io.StringIO()
    with Bar("Distilling (kl_ce)", total=300, unit="steps", stream=out) as bar:
        clock.now += 10
        bar.note("loss 1.234 lr 4.0e-03 val 0.912")
        bar.advance(12)
    assert out.getvalue() == (
        "Distilling (kl_ce): 12 of 300 steps (4%), 1.20 steps/s, 4:00 left; loss 1.234 lr 4.0e-03 val 0.912\n"
    )


@pytest.mark.parametrize("columns", [40, 80, 119, 120, 200])
def test_a_bar_takes_one_line_of_any_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = Terminal()
    with Bar("Distilling (kl_ce)", total=300, unit="steps", stream=out) as bar:
        bar.note("loss 1.234 lr 4.0e-03 val 0.912 " + "and more " * 20)
        bar.advance(12)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n")
    lines = [line for line in plain.split("\n") if line.strip()]
    assert all(len(line) <= columns for line in lines)
    assert all("Distilling" in line for line in lines), "nothing is carried over to a second line"
    assert ("12/300 " in plain) == (columns < 120) and ("loss 1.234 lr 4.0e-03 val 0.912" in plain) == (columns >= 80)


def test_short_work_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(1000), "Counting")) == list(range(1000))
    assert capsys.readouterr() == ("", "")


def test_unknown_total_shows_no_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), io.StringIO()
    with Bar("Reading", unit="bytes", stream=out) as bar:
        clock.now += 20
        bar.advance(5_000_000)
    assert out.getvalue() == "Reading: 5.0M bytes, 250.0k bytes/s\n"


def test_switch_turns_everything_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLDISTILL_PROGRESS", "0")
    clock, plain, terminal = Clock(monkeypatch), io.StringIO(), Terminal()
    for out in (plain, terminal):
        with Bar("Encoding", total=2, stream=out) as bar:
            clock.now += 60
            bar.advance()
        assert out.getvalue() == ""


def test_terminal_shows_a_bar_with_counts_and_brackets_kept() -> None:
    out = Terminal()
    with Bar("Encoding [train]", total=4, unit="documents", stream=out) as bar:
        bar.advance(3)
    assert "Encoding [train]" in out.getvalue()
    assert "3 of 4 documents (75%)" in out.getvalue()


def test_nested_bars_do_not_clash_and_the_terminal_is_given_back() -> None:
    out = Terminal()
    with Bar("outer", total=1, stream=out), Bar("inner", total=1, stream=out) as inner:
        inner.advance()
    assert "inner" not in out.getvalue()
    again = Terminal()
    with pytest.raises(RuntimeError, match="boom"), Bar("again", total=1, stream=again):
        raise RuntimeError("boom")
    assert "again" in again.getvalue()
    assert not Bar._live


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.25, "0.25"), (7, "7"), (12.34, "12.3"), (1234, "1,234"), (12345, "12.3k"), (4.5e6, "4.5M")],
)
def test_counts_are_short(number: float, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(7.6, "8s"), (59.9, "1:00"), (200, "3:20"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
