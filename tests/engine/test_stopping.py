from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from datafree.engine.stopping import Stop, ending, parse_time, stopping
from datafree.errors import Interrupted, RecipeError


def test_stopping_puts_the_handlers_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stopping(None) as stop:
        assert stop() is None
        signal.raise_signal(signal.SIGTERM)  # to this thread: of a whole process, another may take it a moment later
        assert stop() == "SIGTERM"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_before_the_first_step_ends_the_work_at_once_even_where_errors_are_caught() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"stopped before the first step \(SIGTERM\)"), stopping(None):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except Exception:  # as the forecast has it
            pytest.fail("the signal was taken for a fault")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_leaves_at_once() -> None:
    code = (
        "import time; from datafree.engine.stopping import stopping\n"
        "with stopping(None) as stop:\n    stop()\n    print('ready', flush=True)\n    while True: time.sleep(0.01)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stderr.readline() == "\n"
        assert process.stderr.readline().startswith("stopping after this step")
        process.terminate()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM


def test_work_that_cannot_be_gone_on_with_ends_at_once_and_says_what_is_kept() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"^stopped \(SIGINT\): nothing was written$"), ending("nothing was written"):
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)
        except Exception:  # as converters have it
            pytest.fail("the signal was taken for a fault")
    assert signal.getsignal(signal.SIGINT) == before


def test_a_time_limit_allows_one_step_and_no_limit_allows_all() -> None:
    stop = Stop(0.0)
    assert stop() is None
    assert stop() == "--max-time reached"
    assert not any(Stop(None)() for _ in range(3))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("9m", 540), ("1h30m", 5400), ("1h1m1s", 3661)])
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "9", "m", "0s", "1m1h", "-3m", "1.5h", "9 m", "٣m"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="write it as 90s, 9m or 1h30m"):
        parse_time(text)
