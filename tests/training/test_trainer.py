"""A run that was killed ends in the same weights, bit by bit; what a run measures is recorded once and in full."""

import csv
import math
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from moe_course.training import Trainer, draw_batches
from tests.training.killed_run import CHECKPOINT_EVERY, STEPS, Run


@pytest.fixture(scope="module")
def whole():
    run = Run(None)
    return run, run.trainer.fit()


def measured(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def read(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_killed_twice_it_ends_in_the_same_weights(whole, tmp_path):
    script = Path(__file__).with_name("killed_run.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert done.stdout.split() == ["-9", "-9"], done.stderr
    assert (tmp_path / "checkpoint.pt.new").exists(), "it was not killed in writing the checkpoint"
    assert read(tmp_path / "steps.csv")[-1]["step"] == 12, "it was killed before step 12 was recorded"

    expected, history = whole
    resumed = Run(tmp_path)
    again = resumed.trainer.fit()
    assert resumed.calls == STEPS - CHECKPOINT_EVERY, "it went on from the last whole checkpoint"
    for (name, ours), theirs in zip(resumed.model.named_parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert measured(again.steps) == measured(history.steps)
    assert again.evaluations == history.evaluations
    assert [row["step"] for row in again.steps] == list(range(1, STEPS + 1))
    assert read(tmp_path / "steps.csv") == again.steps
    assert read(tmp_path / "evaluations.csv") == again.evaluations

    finished = Run(tmp_path)
    assert finished.trainer.fit() == again and finished.calls == 0, "a finished run is only read"
    assert torch.equal(finished.model.head.weight, expected.model.head.weight)


def test_every_part_of_the_loss_is_recorded(whole):
    _, history = whole
    assert len(history.steps) == STEPS
    names = {"step", "loss", "cross_entropy", "balance", "z", "grad_norm", "learning_rate", "seconds"}
    assert all(set(row) == names for row in history.steps)
    for row in history.steps:
        assert math.isclose(row["loss"], row["cross_entropy"] + 0.01 * row["balance"], rel_tol=1e-5)
    assert [row["step"] for row in history.evaluations] == [5, 10, 15, 20]
    assert set(history.evaluations[0]) == {"step", "some", "other"}


# A smaller problem for the rest


def squared_error(model, rows):
    return (model(rows[:, :3]) - rows[:, 3:]).square().mean()


def problem(**settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), nn.Linear(4, 1))
    rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    settings = {"steps": 10, "learning_rate": 0.01} | settings
    return Trainer(model, squared_error, draw_batches(rows, 8, 10, seed=2), **settings)


def weights(trainer):
    return nn.utils.parameters_to_vector(trainer.model.parameters())


def test_the_seed_decides_on_dropout():
    trainers = [problem(seed=seed) for seed in (0, 0, 1)]
    for trainer in trainers:
        trainer.fit()
    first, again, other = map(weights, trainers)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_without_a_seed_the_generator_is_left_alone():
    trainer = problem(seed=None)
    torch.manual_seed(5)
    trainer.fit()
    first = torch.rand(())
    torch.manual_seed(5)
    for _ in range(10):
        trainer.model.train()(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(first, torch.rand(()))


def test_the_schedule_is_followed():
    history = problem(schedule=lambda progress: progress**2).fit()
    expected = [0.01 * (step / 10) ** 2 for step in range(1, 11)]
    assert [row["learning_rate"] for row in history.steps] == pytest.approx(expected)


def test_clipping_limits_the_norm_and_records_it_before():
    free, clipped = problem(clip=None), problem(clip=1e-3)
    assert "grad_norm" not in free.fit().steps[0]
    first = clipped.fit().steps[0]["grad_norm"]
    after = torch.stack([p.grad.norm() for p in clipped.model.parameters()]).norm()
    assert first > 0.01
    assert after.item() == pytest.approx(1e-3, rel=1e-2)


def test_evaluations_see_the_model_at_rest_and_training_goes_on():
    modes = []

    def evaluate(model):
        modes.append((model.training, torch.is_grad_enabled()))
        return {"norm": weights(trainer).norm()}

    trainer = problem(evaluate=evaluate, evaluations=3)
    history = trainer.fit()
    assert modes == [(False, False)] * 3 and trainer.model.training
    assert [row["step"] for row in history.evaluations] == [3, 7, 10]
    assert history.evaluations[-1]["norm"] == pytest.approx(weights(trainer).norm().item())


def test_the_last_step_makes_a_checkpoint_and_others_when_due(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr("moe_course.training.trainer.save_checkpoint", lambda _, state: steps.append(state["step"]))
    problem(folder=tmp_path, checkpoint_every=4).fit()
    assert steps == [4, 8, 10]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    problem(folder=tmp_path).fit()
    with pytest.raises(ValueError, match=r"its learning_rate is 0\.01, this one's 0\.02; choose another folder"):
        problem(folder=tmp_path, learning_rate=0.02).fit()
    other = problem(folder=tmp_path)
    other.model.append(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"its 3\.weight is None, this one's \[1, 1\]"):
        other.fit()


def test_a_table_that_lost_rows_is_refused(tmp_path):
    problem(folder=tmp_path).fit()
    (tmp_path / "steps.csv").unlink()
    with pytest.raises(ValueError, match=r"steps\.csv has lost rows since the checkpoint; delete the folder"):
        problem(folder=tmp_path).fit()


def test_too_few_batches():
    with pytest.raises(ValueError, match="batches ended after 10; pass at least steps=11"):
        problem(steps=11).fit()


@pytest.mark.parametrize("name", ["steps", "evaluations", "checkpoint_every"])
def test_none_is_too_few(name):
    with pytest.raises(ValueError, match=f"{name}=0 is too few; choose {name} ≥ 1"):
        problem(**{name: 0})


@pytest.mark.parametrize(
    ("terminal", "asked", "shown"),
    [(False, None, False), (True, None, True), (True, False, False), (False, True, True)],
)
def test_the_progress_bar_shows_on_a_terminal_or_when_asked(terminal, asked, shown, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    problem(progress=asked).fit()
    captured = capsys.readouterr()
    assert ("10/10" in captured.err) == shown and captured.out == ""
    assert shown or captured.err == ""


def test_tensorboard_gets_every_row(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = problem(folder=tmp_path, evaluate=lambda model: {"one": 1.0}).fit()
    events = EventAccumulator(str(tmp_path)).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(row["step"], pytest.approx(row["loss"])) for row in history.steps]
    assert [event.step for event in events.Scalars("evaluation/one")] == [2, 4, 6, 8, 10]


def test_tensorboard_forgets_the_steps_that_come_again(tmp_path, monkeypatch):
    first_steps = []

    def writer(folder, purge_step):
        first_steps.append(purge_step)
        return Mock()

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", writer)
    interrupted = problem(folder=tmp_path, checkpoint_every=4, evaluate=lambda model: 1 / 0, evaluations=1)
    with pytest.raises(ZeroDivisionError):
        interrupted.fit()
    problem(folder=tmp_path).fit()
    assert first_steps == [1, 9]


def test_without_tensorboard_there_are_tables(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    problem(folder=tmp_path).fit()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "evaluations.csv", "steps.csv"]
