"""A training run that may be killed: it goes on from its last checkpoint, to the same weights, bit by bit.

trainer = Trainer(model, language_model_loss, corpus.batches(128, 8, 1000, seed=0), steps=1000, learning_rate=3e-3,
                  evaluate=lambda model: evaluate_domains(model, rows), folder=Path("runs/first"))
history = trainer.fit()

The folder holds `checkpoint.pt`, one row for each step in `steps.csv` and one for each evaluation in
`evaluations.csv`, and TensorBoard's files where that is installed: `tensorboard --logdir runs`.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_course.training.run_files import Table, TensorBoard, load_checkpoint, progress_bar, save_checkpoint

WARM_UP = 0.1  # share of the steps


@dataclasses.dataclass(frozen=True)
class History:
    """What a run measured; `pandas.DataFrame(history.steps)` is a table.

    Attributes:
        steps: for each step: step, the loss with its parts, grad_norm before clipping, learning_rate, seconds.
        evaluations: for each evaluation: step, and what `evaluate` returned.
    """

    steps: list[dict[str, float]]
    evaluations: list[dict[str, float]]


def rise_and_fall(progress: float) -> float:
    """The learning rate after a share of the steps, as a share of the largest: up in a line, down on a cosine."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


class Trainer:
    """AdamW on batches, with a schedule, clipped gradients, evaluations, checkpoints and a record of it all.

    Args:
        model: starts from the parameters it has, or from those of the checkpoint.
        loss: (model, batch) → a scalar, or a dataclass whose `loss` is one, such as `LanguageModelLoss`: every part is
            recorded.
        batches: at least `steps` of them, and the same ones again in a process that resumes: it skips those that
            were trained on.
        steps: optimiser steps.
        learning_rate: AdamW's largest rate.
        schedule: share of the steps done, to share of the largest rate.
        clip: scale gradients down to a joint norm of at most this; None: leave them, and do not measure the norm.
        evaluate: measures the model, in evaluation mode and without gradients, and returns numbers by name.
        evaluations: how many times, at equal distances, the last after the last step.
        folder: for checkpoints and metrics; None: nothing is written.
        checkpoint_every: steps from one checkpoint to the next; the last step makes one in any case.
        seed: of torch's generators, for what is random in the model; None leaves them as they are.
        progress: show a progress bar; None: if a person is likely to watch, in a terminal.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], Any],
        batches: Iterable[Any],
        *,
        steps: int,
        learning_rate: float,
        schedule: Callable[[float], float] = rise_and_fall,
        clip: float | None = 1.0,
        evaluate: Callable[[nn.Module], Mapping[str, float | Tensor]] | None = None,
        evaluations: int = 5,
        folder: Path | str | None = None,
        checkpoint_every: int = 100,
        seed: int | None = 0,
        progress: bool | None = None,
    ) -> None:
        for name, value in (("steps", steps), ("evaluations", evaluations), ("checkpoint_every", checkpoint_every)):
            if value < 1:
                raise ValueError(f"{name}={value} is too few; choose {name} ≥ 1")
        self.model, self.loss, self.batches, self.evaluate = model, loss, batches, evaluate
        self.steps, self.learning_rate, self.schedule, self.clip = steps, learning_rate, schedule, clip
        self.evaluated_at = {round(steps * (i + 1) / evaluations) for i in range(evaluations)} if evaluate else set()
        self.folder = None if folder is None else Path(folder)
        self.checkpoint_every, self.seed, self.progress = checkpoint_every, seed, progress

    def fit(self) -> History:
        """Train to the last step, from the checkpoint if there is one, and return what was measured on the way.

        Raises:
            ValueError: the batches end too early, or the checkpoint is of a run with other settings.
        """
        if self.seed is not None:
            torch.manual_seed(self.seed)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.learning_rate, fused=True)
        batches = iter(self.batches)
        done, sizes = self._resume(optimizer, batches)
        tables = {name: Table(self.folder, name, sizes.get(name, 0)) for name in ("steps", "evaluations")}
        board = TensorBoard(self.folder, first_step=done + 1)
        with progress_bar(self.steps, done, self.progress) as advance:
            for step in range(done + 1, self.steps + 1):
                row = {"step": step, **self._step(optimizer, self._next(batches, step), step / self.steps)}
                tables["steps"].append(row)
                board.add("train", row)
                if step in self.evaluated_at:
                    measured = {"step": step, **self._evaluate()}
                    tables["evaluations"].append(measured)
                    board.add("evaluation", measured)
                if self.folder and (step % self.checkpoint_every == 0 or step == self.steps):
                    board.sync()
                    sizes = {name: table.sync() for name, table in tables.items()}
                    save_checkpoint(self.folder, self._state(optimizer, step, sizes))
                advance(row["loss"])
        board.close()
        return History(*(table.rows for table in tables.values()))

    def _step(self, optimizer: torch.optim.Optimizer, batch: Any, progress: float) -> dict[str, float]:
        """One optimiser step; returns its row."""
        start = time.perf_counter()
        rate = self.learning_rate * self.schedule(progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        result = self.loss(self.model, batch)
        parts = {"loss": result} if isinstance(result, Tensor) else _fields(result)
        parts["loss"].backward()
        if self.clip is not None:
            parts["grad_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        optimizer.step()
        row = {name: part.item() for name, part in parts.items()}
        return {**row, "learning_rate": rate, "seconds": time.perf_counter() - start}

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        assert self.evaluate is not None
        was_training = self.model.training
        self.model.eval()
        measured = {name: float(value) for name, value in self.evaluate(self.model).items()}
        self.model.train(was_training)
        return measured

    def _next(self, batches: Iterator[Any], step: int) -> Any:
        try:
            return next(batches)
        except StopIteration:
            raise ValueError(f"batches ended after {step - 1}; pass at least steps={self.steps} of them") from None

    def _settings(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be of this run."""
        shapes = {name: list(parameter.shape) for name, parameter in self.model.named_parameters()}
        return {"steps": self.steps, "learning_rate": self.learning_rate, "clip": self.clip, "seed": self.seed} | shapes

    def _state(self, optimizer: torch.optim.Optimizer, step: int, sizes: dict[str, int]) -> dict[str, Any]:
        return {
            "settings": self._settings(),
            "step": step,
            "sizes": sizes,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": torch.get_rng_state(),
            "cuda_generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def _resume(self, optimizer: torch.optim.Optimizer, batches: Iterator[Any]) -> tuple[int, dict[str, int]]:
        """Put everything back to where the last checkpoint was taken: (steps done, sizes of the tables then)."""
        state = load_checkpoint(self.folder, self._settings())
        if state is None:
            return 0, {}
        self.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for step in range(1, state["step"] + 1):
            self._next(batches, step)
        torch.set_rng_state(state["generator"])  # after the batches, which may have drawn from it
        if len(state["cuda_generators"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda_generators"])
        return state["step"], state["sizes"]


def _fields(result: Any) -> dict[str, Tensor]:
    return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
