"""The loop learns, measures what it says it measures, and repeats itself."""

import torch
from torch import nn

from moe_course.training import draw_batches, train
from moe_course.training.trainer import rise_and_fall


def _mean_squared_error(model, batch):
    return (model(batch[:, :3]) - batch[:, 3:]).square().mean()


def _problem():
    x = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([x, x.sum(-1, keepdim=True)], dim=-1)
    torch.manual_seed(0)
    return nn.Linear(3, 1), rows[:200], rows[200:]


def _run(steps=60, points=3):
    model, rows, held_out = _problem()
    before = _mean_squared_error(model, held_out).item()
    batches = draw_batches(rows, 32, steps, seed=1)
    curve = train(model, _mean_squared_error, batches, held_out, steps=steps, learning_rate=0.1, points=points)
    return model, held_out, before, curve


def test_learns_and_reports_the_loss_on_held_out_rows():
    model, held_out, before, curve = _run()
    assert curve.losses[-1] < 0.05 * before
    assert curve.losses[-1] == _mean_squared_error(model, held_out).item()


def test_measures_at_equal_distances_and_at_the_end():
    assert _run(steps=50, points=4)[3].steps == [12, 25, 38, 50]


def test_repeats_itself():
    first, again = _run()[3], _run()[3]
    assert first.losses == again.losses


def test_takes_no_more_batches_than_steps():
    model, rows, held_out = _problem()
    batches = draw_batches(rows, 8, 100, seed=1)
    train(model, _mean_squared_error, batches, held_out, steps=10, learning_rate=0.1, points=1)
    assert len(list(batches)) == 90


def test_learning_rate_rises_to_its_largest_and_falls_to_nothing():
    rates = [rise_and_fall(step / 100) for step in range(1, 101)]
    assert max(rates) == rates[9] == 1
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[0] > 0 and abs(rates[-1]) < 1e-12


def test_leaves_the_model_in_the_mode_it_was_in():
    assert _run()[0].training


def test_counts_only_the_time_of_training_steps(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("moe_course.training.trainer.time.perf_counter", lambda: next(clock))
    assert _run(steps=7, points=7)[3].seconds == 7
