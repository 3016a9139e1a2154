"""Time limits stop what runs too long, in the main thread and in others, and leave no trace."""

import signal
import threading
import time

import pytest

from moe_course.exercises.limits import TimeLimit, call_within


def _spin():
    while True:
        try:
            sum(range(100))
        except Exception:
            continue


def _in_thread(function):
    """What `function` returned or raised in a thread of its own."""
    result = []

    def run():
        try:
            result.append(function())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


def test_returns_the_value():
    assert call_within(5, lambda: 42) == 42
    assert _in_thread(lambda: call_within(5, lambda: 42)) == 42


def test_errors_pass_through():
    with pytest.raises(ZeroDivisionError):
        call_within(5, lambda: 1 / 0)
    assert isinstance(_in_thread(lambda: call_within(5, lambda: 1 / 0)), ZeroDivisionError)


def test_stops_an_endless_loop():
    started = time.monotonic()
    with pytest.raises(TimeLimit):
        call_within(0.1, _spin)
    assert isinstance(_in_thread(lambda: call_within(0.1, _spin)), TimeLimit)
    assert time.monotonic() - started < 5


def test_leaves_no_timer_and_no_handler_behind():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeLimit):
        call_within(0.05, _spin)
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    time.sleep(0.05)  # an alarm still on its way would end the test run
