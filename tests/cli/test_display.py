from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest

from datafree.cli.display import Bar, Lines, clock_time, describe, display, figures
from datafree.engine.progress import Progress, Work


def progress(step: int, *, first: int = 0, last: int = 1000, rate: float = 10.0, **values: float) -> Progress:
    return Progress(
        phase="training" if step > 0 else "warm-up",
        step=step,
        first=first,
        last=last,
        rate=rate,
        values=values,
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_time_left_is_the_steps_left_over_the_rate() -> None:
    # 600 steps left at 10 a second are 60 seconds.
    assert describe(progress(400, loss=0.5)) == "training 400/1000, 10 steps/s, 1:00 left, loss 0.5"


def test_warm_up_counts_from_its_own_start() -> None:
    # From -200 to 0; at -150 fifty are done, and 150 at 2 seconds each are five minutes.
    line = describe(progress(-150, first=-200, rate=0.5))
    assert line == "warm-up 50/200, 2 s/step, 5:00 left of the warm-up"


def test_no_rate_and_no_time_left_before_a_rate_is_known() -> None:
    assert describe(progress(20, rate=0.0)) == "training 20/1000"


def test_the_end_has_no_time_left() -> None:
    assert "left" not in describe(progress(1000))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (0.2, "0:01"), (59.5, "1:00"), (725, "12:05"), (3600, "1:00:00")]
)
def test_clock_time(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_the_loss_comes_first_and_only_a_few_figures_are_shown() -> None:
    shown = figures({"d": 1.0, "g": 2.0, "e": 3.0, "h": 4.0, "loss": 0.125})
    assert shown == "loss 0.125, d 1, g 2, e 3"
    shown = figures({"d": 1.0, "pixel_diversity": 0.2, "e": 3.0, "class_balance": 0.9, "loss": 0.125, "f": 1.0})
    assert shown == "loss 0.125, class_balance 0.9, pixel_diversity 0.2, d 1"


def steps_shown(seconds_a_step: float, steps: int) -> list[int]:
    """The steps of which Lines shows a line, when each takes this long and all are logged."""
    now = [0.0]
    stream = io.StringIO()
    lines = Lines(stream, clock=lambda: now[0])
    for step in range(1, steps + 1):
        now[0] += seconds_a_step
        lines.log(progress(step, last=steps))
    return [int(line.split()[1].split("/")[0]) for line in stream.getvalue().splitlines()]


def test_a_fast_run_off_a_terminal_is_a_line_each_tenth_and_the_last() -> None:
    assert steps_shown(0.001, 1000) == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901, 1000]


def test_a_slow_run_off_a_terminal_is_a_line_each_ten_seconds_at_first() -> None:
    assert steps_shown(1.0, 1000)[:5] == [1, 11, 21, 31, 41]


def test_lines_grow_rarer_in_a_long_run() -> None:
    shown = steps_shown(1.0, 36_000)  # ten hours: every ten seconds would be 3,600 lines
    assert 20 < len(shown) < 200
    assert shown[-1] == 36_000


def test_the_end_of_the_warm_up_is_always_shown() -> None:
    stream = io.StringIO()
    lines = Lines(stream, clock=lambda: 0.0)
    for step in (-999, -998, 0, 1):
        lines.log(progress(step, first=-1000, last=9000))
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == [
        "warm-up 1/1000",
        "warm-up 1000/1000",
    ]


def test_display_off_a_terminal_writes_plain_lines() -> None:
    stream = io.StringIO()
    with display(stream=stream) as shown:
        shown.say("going on at step 40")
        shown.log(progress(50, loss=1.0))
    assert stream.getvalue() == "going on at step 40\ntraining 50/1000, 10 steps/s, 1:35 left, loss 1\n"


def test_quiet_writes_nothing_but_warnings_even_on_a_terminal() -> None:
    stream = Terminal()
    with display(quiet=True, stream=stream) as shown:
        shown.say("going on at step 40")
        shown.log(progress(50))
        shown.say("warning: step 50: collapsed")
    assert stream.getvalue() == "warning: step 50: collapsed\n"


def test_a_terminal_gets_a_bar_with_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with display(stream=stream) as shown:
        assert isinstance(shown, Bar)
        shown.say("going on [at] step 40")  # brackets are no markup
        shown.log(progress(500, loss=0.25))
    assert "going on [at] step 40" in stream.getvalue()
    assert "training 500/1000, 10 steps/s, 0:50 left, loss 0.25" in stream.getvalue()
    assert "50%" in stream.getvalue()


@pytest.mark.parametrize("given", ["", "1"])
def test_no_color_leaves_no_colours_in_the_bar(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", given)  # empty: as if it were not set
    stream = Terminal()
    with display(stream=stream) as shown:
        shown.log(progress(500))
    coloured = re.search(r"\x1b\[(38;|3[0-7]|9[0-7])", stream.getvalue()) is not None  # sets the colour of what follows
    assert coloured != bool(given), repr(stream.getvalue())


def test_verbose_is_a_line_for_all_that_is_logged_with_every_figure() -> None:
    stream = Terminal()
    with display(verbose=True, stream=stream) as shown:
        for step in (10, 20):
            shown.log(progress(step, a=1.0, b=2.0, c=3.0, d=4.0, e=5.0))
    assert stream.getvalue().splitlines() == [
        "training 10/1000, 10 steps/s, 1:39 left, a 1, b 2, c 3, d 4, e 5",
        "training 20/1000, 10 steps/s, 1:38 left, a 1, b 2, c 3, d 4, e 5",
    ]


def test_other_work_tells_its_part_and_the_time_left_and_nothing_while_it_is_quick() -> None:
    now = [0.0]
    stream = io.StringIO()
    lines = Lines(stream, clock=lambda: now[0])
    seen: list[Progress] = []
    work = Work("plan", 3, seen.append)
    for what in ("networks", "teacher", "student"):
        work.next(what)
    work.at(3)
    assert [(p.step, p.last, p.what) for p in seen] == [
        (0, 3, "networks"),
        (1, 3, "teacher"),
        (2, 3, "student"),
        (3, 3, ""),
    ]
    lines.log(seen[0])
    assert stream.getvalue() == ""
    now[0] = 10.0
    lines.log(replace(seen[2], rate=0.5))  # one part is left, of two seconds each
    assert stream.getvalue() == "plan 2/3: student, 0:02 left\n"


def test_scores_are_counted_in_images() -> None:
    scored = Progress(phase="scores", step=64, first=0, last=128, rate=32.0, values={})
    assert describe(scored) == "scores 64/128, 32 images/s, 0:02 left"
