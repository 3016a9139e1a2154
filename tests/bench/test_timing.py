"""The mechanics of timing, on a clock that the test turns."""

import gc

import pytest
import torch

from moe_course.bench import timing
from moe_course.bench.timing import Sample, interleave, median_ratio, one_thread, ratios


class Clock:
    """CPU and wall time, which pass only when a call says so."""

    def __init__(self, monkeypatch):
        self.cpu = self.wall = 0.0
        monkeypatch.setattr(timing.time, "process_time", lambda: self.cpu)
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.wall)

    def spend(self, cpu, wall=None):
        self.cpu += cpu
        self.wall += cpu if wall is None else wall


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_calls_take_turns(clock):
    order = []

    def call(name):
        order.append(name)
        clock.spend(1.0)

    rounds = []
    interleave({"a": lambda: call("a"), "b": lambda: call("b")}, rounds=3, on_round=rounds.append)
    assert order[-6:] == ["a", "b"] * 3
    assert rounds == [1, 2, 3]


def test_samples_are_seconds_of_one_call_on_both_clocks(clock):
    calls = {"fast": lambda: clock.spend(0.001, wall=0.003), "slow": lambda: clock.spend(0.5)}
    samples = interleave(calls, rounds=2, min_seconds=0.02)
    assert [s.cpu for s in samples["fast"]] == pytest.approx([0.001, 0.001])
    assert [s.wall for s in samples["fast"]] == pytest.approx([0.003, 0.003])
    assert [s.cpu for s in samples["slow"]] == pytest.approx([0.5, 0.5])


def test_a_short_call_is_repeated_until_a_sample_lasts(clock):
    counts = []

    def call():
        counts.append(clock.cpu)
        clock.spend(0.001)

    interleave({"a": call}, rounds=1, min_seconds=0.02)
    in_the_round = 32  # the first power of two that lasts 20 ms
    calibration = 1 + 1 + 2 + 4 + 8 + 16 + 32
    assert len(counts) == calibration + in_the_round


def test_a_call_that_only_waits_comes_to_an_end(clock):
    samples = interleave({"waits": lambda: clock.spend(0.0, wall=0.05)}, rounds=1, min_seconds=0.02)
    assert samples["waits"][0].wall == pytest.approx(0.05)


def test_the_ratio_is_taken_in_each_round_and_then_the_median():
    ours = [Sample(2, 3), Sample(30, 30), Sample(6, 3)]  # the machine was ten times slower in the second round
    dense = [Sample(1, 1), Sample(10, 10), Sample(2, 3)]
    assert ratios(ours, dense) == [2, 3, 3]
    assert median_ratio(ours, dense) == 3
    assert median_ratio(ours, dense, "wall") == 3
    assert ratios(ours, dense, "wall") == [3, 3, 1]


def test_garbage_is_not_collected_within_the_rounds_and_is_after(clock):
    seen = []

    def call():
        seen.append(gc.isenabled())
        clock.spend(1.0)
        if len(seen) > 4:
            raise RuntimeError("a call that breaks")

    with pytest.raises(RuntimeError, match="breaks"):
        interleave({"a": call}, rounds=5)
    assert seen == [True, False, False, False, False]  # the first call is the warm-up
    assert gc.isenabled()


def test_one_thread_gives_the_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError), one_thread():
            assert torch.get_num_threads() == 1
            raise RuntimeError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
