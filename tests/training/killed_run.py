"""One training run, for `test_trainer.py`: run as a script, it is killed twice, at the worst moments.

Everything that a checkpoint must hold is in it: dropout and the order of the rows draw from torch's global generator,
routers choose, AdamW remembers.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from moe_course.layers import MoETransformer, TransformerConfig
from moe_course.training import LanguageModelLoss, Trainer, evaluate_domains, language_model_loss

STEPS, CHECKPOINT_EVERY = 20, 6
ROWS = torch.randint(17, (4 * STEPS, 9), generator=torch.Generator().manual_seed(0))


class Run:
    """A `Trainer` that counts its steps, and can be told to be killed in the middle of one."""

    def __init__(self, folder: Path | None, *, killed_in: int | None = None) -> None:
        torch.manual_seed(3)
        config = TransformerConfig(vocab_size=17, d_model=16, num_layers=2, num_heads=2, num_experts=4, d_ff_expert=8)
        self.model = MoETransformer(config)
        self.model.norm = nn.Sequential(self.model.norm, nn.Dropout(0.2))
        self.calls, self.killed_in = 0, killed_in
        self.trainer = Trainer(
            self.model,
            self.loss,
            DataLoader(ROWS, batch_size=4, shuffle=True),
            steps=STEPS,
            learning_rate=1e-2,
            evaluate=lambda model: evaluate_domains(model, {"some": ROWS[:4], "other": ROWS[4:8]}),
            evaluations=4,
            folder=folder,
            checkpoint_every=CHECKPOINT_EVERY,
        )

    def loss(self, model: MoETransformer, ids: torch.Tensor) -> LanguageModelLoss:
        self.calls += 1
        if self.calls == self.killed_in:
            die()
        return language_model_loss(model, ids)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_process(run) -> int:
    """The signal that ended it. Forked before torch has done anything: as good as a new process, and starts faster."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        run()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_while_writing_the_checkpoint(folder: Path) -> None:
    run, save = Run(folder), torch.save

    def half(state, file):
        save(state, file)
        if run.calls >= CHECKPOINT_EVERY:  # the second checkpoint of this process
            file.truncate(file.tell() // 2)
            file.flush()
            die()

    torch.save = half
    run.trainer.fit()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    # Step 10: after the checkpoint of step 6, whose later rows are in the tables and must go.
    print(in_a_process(lambda: Run(folder, killed_in=10).trainer.fit()))
    # From step 6 on; dies in writing the checkpoint of step 12 and leaves that of step 6.
    print(in_a_process(lambda: killed_while_writing_the_checkpoint(folder)))
