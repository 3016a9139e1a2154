"""A time limit for a learner's code that runs in the learner's own kernel."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any


class TimeLimit(BaseException):
    """Raised inside code that has run out of time. Not an Exception, so that `except Exception` lets it through."""


def call_within(seconds: float, function: Callable[[], Any]) -> Any:
    """Returns `function()`.

    Raises:
        TimeLimit: it took longer than `seconds`. Endless loops that swallow every exception are stopped too.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        return _with_alarm(seconds, function)
    return _with_watchdog(seconds, function)


def _with_alarm(seconds: float, function: Callable[[], Any]) -> Any:
    guard = sys._getframe()
    armed = True

    def on_alarm(signum: int, frame: Any) -> None:
        if armed and frame is not guard:  # never while this function itself is cleaning up
            raise TimeLimit

    before = signal.signal(signal.SIGALRM, on_alarm)
    # After the first alarm, one every 50 µs: a loop around a bare `except:` swallows most of them, but soon one
    # arrives outside its `try`.
    signal.setitimer(signal.ITIMER_REAL, seconds, 5e-5)
    try:
        return function()
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _with_watchdog(seconds: float, function: Callable[[], Any]) -> Any:
    """For Windows and for threads other than the main one; a blocking C call is stopped only when it returns."""
    thread_id = ctypes.c_ulong(threading.get_ident())
    done = threading.Event()

    def watch() -> None:
        wait = seconds
        while not done.wait(wait):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread_id, ctypes.py_object(TimeLimit))
            wait = 0.001

    watchdog = threading.Thread(target=watch, daemon=True)
    watchdog.start()
    try:
        return function()
    finally:
        done.set()
        watchdog.join()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread_id, None)  # one that is still on its way
