"""The monitor counts every token once: over micro-batches, modes, nested modules, recomputation and compilation."""

import copy
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moe_course.layers import MoELayer, Routing, top_k_routing
from moe_course.training import ExpertMonitor


class Block(nn.Module):
    """A residual MoE block that hands its routing on, as its layer and its router do."""

    def __init__(self, checkpointed=None):
        super().__init__()
        self.moe = MoELayer(8, 16, num_experts=4, top_k=2)
        self.checkpointed = checkpointed

    def forward(self, x):
        if self.checkpointed is None:
            out, routing = self.moe(x)
        else:
            out, routing = checkpoint(self.moe, x, **self.checkpointed)
        return x + out, routing


class Model(nn.Module):
    def __init__(self, checkpointed=None):
        super().__init__()
        self.blocks = nn.ModuleList(Block(checkpointed) for _ in range(2))

    def forward(self, x):
        routings = []
        for block in self.blocks:
            x, routing = block(x)
            routings.append(routing)
        return x, tuple(routings)


def _model(checkpointed=None):
    torch.manual_seed(0)
    return Model(checkpointed)


def _tokens(*shape):
    return torch.randn(*shape, 8, generator=torch.Generator().manual_seed(1))


def _loads(monitor):
    return [list(layer.tokens_per_expert) for layer in monitor.layers()]


def test_counts_each_layer_once_however_many_modules_return_its_routing():
    model = _model()
    with ExpertMonitor(model) as monitor:
        _, routings = model(_tokens(5, 6))
    assert [layer.layer for layer in monitor.layers()] == ["blocks.0.moe.router", "blocks.1.moe.router"]
    assert [layer.tokens for layer in monitor.layers()] == [30, 30]
    assert _loads(monitor) == [routing.tokens_per_expert.tolist() for routing in routings]


def test_micro_batches_add_up_to_the_batch():
    model, x = _model(), _tokens(24)
    with ExpertMonitor(model) as monitor:
        model(x)
        whole = monitor.layers()
        monitor.reset()
        for part in x.split([1, 3, 8, 12]):
            model(part)[0].sum().backward()
        parts = monitor.layers()
    for one, other in zip(whole, parts, strict=True):
        assert one.router_entropy == pytest.approx(other.router_entropy, rel=1e-5)
        assert dataclasses.replace(one, router_entropy=0) == dataclasses.replace(other, router_entropy=0)


@pytest.mark.parametrize("training", [True, False])
def test_counts_one_mode_only(training):
    model = _model()
    with ExpertMonitor(model, training=training) as monitor:
        model.train(not training)
        model(_tokens(7))
        assert monitor.layers() == []
        assert ("training" if training else "evaluation") in repr(monitor)
        model.train(training)
        model(_tokens(9))
        assert [layer.tokens for layer in monitor.layers()] == [9, 9]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_does_not_count_again(use_reentrant):
    x = _tokens(12).requires_grad_()  # the re-entrant kind needs an input with a gradient
    plain, checkpointed = _model(), _model({"use_reentrant": use_reentrant})
    calls = []
    checkpointed.blocks[0].moe.router.register_forward_hook(lambda *_: calls.append(1))
    with ExpertMonitor(plain) as expected, ExpertMonitor(checkpointed) as monitor:
        for _ in range(3):
            plain(x)[0].sum().backward()
            checkpointed(x)[0].sum().backward()
    assert len(calls) == 6  # each forward pass was computed twice
    assert monitor.layers() == expected.layers()


def test_evaluation_in_the_midst_of_training_leaves_no_trace():
    model = _model()
    with ExpertMonitor(model) as monitor:
        model.eval()
        with torch.inference_mode():
            model(_tokens(50))
        model.train()
        model(_tokens(4))
        model.eval()
        model(_tokens(50))
    assert [layer.tokens for layer in monitor.layers()] == [4, 4]


def test_inference_mode_and_training_may_alternate():
    model = _model()
    with ExpertMonitor(model) as monitor:
        for _ in range(2):
            with torch.inference_mode():
                model(_tokens(4))
            model(_tokens(4))[0].sum().backward()
    assert [layer.tokens for layer in monitor.layers()] == [16, 16]


def test_a_layer_without_a_router_module_counts_under_its_own_name():
    class OwnLayer(nn.Module):
        def forward(self, logits):
            return top_k_routing(logits, 1)

    own = OwnLayer()
    with ExpertMonitor(own) as alone, ExpertMonitor(nn.Sequential(own)) as nested:
        own(torch.eye(3)[[0, 2, 2]])
    assert [layer.layer for layer in alone.layers()] == ["OwnLayer"]
    assert [layer.layer for layer in nested.layers()] == ["0"]
    assert _loads(alone) == _loads(nested) == [[1, 0, 2]]


def test_a_module_called_twice_in_a_forward_pass_counts_both_calls():
    layer = MoELayer(8, 16, num_experts=4, top_k=2)
    with ExpertMonitor(layer) as monitor:
        layer(layer(_tokens(6))[0])
    assert monitor.layers()[0].tokens == 12


def test_a_copy_of_the_model_does_not_count():
    model = _model()
    with ExpertMonitor(model) as monitor:
        average = copy.deepcopy(model)
        average(_tokens(6))
        assert monitor.layers() == []


class Fixed(nn.Module):
    """Routes as it is told."""

    def __init__(self, change=None):
        super().__init__()
        self.change = change

    def forward(self, logits, top_k=1):
        routing = top_k_routing(logits, top_k)
        return routing if self.change is None else self.change(routing)


def test_max_violation_dead_experts_and_share_by_hand():
    layer = Fixed()
    with ExpertMonitor(layer) as monitor:
        layer(100 * torch.eye(5)[[1, 1, 1, 4]])
        layer(100 * torch.eye(5)[[0, 1, 4, 4, 4, 4]])
    (load,) = monitor.layers()
    assert load.tokens_per_expert == (1, 4, 0, 0, 5)
    assert load.max_violation == pytest.approx(5 / 2 - 1)  # of the summed loads, not a mean of two violations
    assert load.dead_experts == (2, 3)
    assert load.busiest_share == 0.5
    assert load.dropped is None


def test_router_entropy_weighs_tokens_not_calls():
    layer = Fixed()
    with ExpertMonitor(layer) as monitor:
        layer(torch.zeros(1, 4))  # undecided
        assert monitor.layers()[0].router_entropy == pytest.approx(1)
        layer(1000 * torch.eye(4)[[0, 1, 2]])  # decided
        assert monitor.layers()[0].router_entropy == pytest.approx(1 / 4)


def test_entropy_of_sigmoid_scores_is_that_of_their_shares():
    layer = MoELayer(8, 16, num_experts=6, top_k=2, score="sigmoid")  # six scores of 1/2
    nn.init.zeros_(layer.router.weight)
    with ExpertMonitor(layer) as monitor:
        layer(_tokens(6))
    assert monitor.layers()[0].router_entropy == pytest.approx(1)


@dataclasses.dataclass(frozen=True)
class DroppingRouting(Routing):
    dropped: torch.Tensor


def _drop_first(routing):
    dropped = torch.zeros_like(routing.expert_ids, dtype=torch.bool)
    dropped[0] = True
    return DroppingRouting(routing.logits, routing.probs, routing.weights, routing.expert_ids, dropped)


def test_dropped_choices_count_once_where_a_layer_reports_them():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = Fixed()

        def forward(self, logits):
            return logits, _drop_first(self.router(logits, 2))

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.moe = Dropping()

        def forward(self, logits):
            return self.moe(logits)

    model = Outer()
    with ExpertMonitor(model) as monitor:
        model(torch.randn(5, 4))
        model(torch.randn(5, 4))
    (load,) = monitor.layers()
    assert (load.layer, load.tokens, sum(load.tokens_per_expert), load.dropped) == ("moe.router", 10, 20, 4)
    assert "20.0%" in repr(monitor)


def test_memory_is_constant_and_holds_no_graph():
    model = _model()
    with ExpertMonitor(model) as monitor:
        for _ in range(20):
            model(_tokens(6))[0].sum().backward()
    assert monitor._seen == {}
    for sums in monitor._sums.values():
        assert sums.counts.numel() == 4 and sums.entropy.numel() == 1 and not sums.entropy.requires_grad


def test_close_and_reset():
    model = _model()
    monitor = ExpertMonitor(model)
    model(_tokens(6))
    monitor.close()
    model(_tokens(6))
    assert monitor.layers()[0].tokens == 6
    monitor.reset()
    assert monitor.layers() == []
    assert not any(module._forward_hooks for module in model.modules())


def test_no_tokens_and_one_expert():
    layer = MoELayer(8, 16, num_experts=1, top_k=1)
    with ExpertMonitor(layer) as monitor:
        layer(_tokens(0))
        (empty,) = monitor.layers()
        assert (empty.tokens, empty.max_violation, empty.router_entropy, empty.busiest_share) == (0, 0, 0, 0)
        layer(_tokens(3))
        (load,) = monitor.layers()
        assert (load.tokens_per_expert, load.max_violation, load.router_entropy) == ((3,), 0, 0)


NUMBERS = ["busiest", "MaxVio", "dead experts", "router entropy"]


def test_summary_in_words():
    layer = Fixed()
    with ExpertMonitor(layer) as monitor:
        layer(100 * torch.eye(4)[[1] * 8 + [3]])
    header, row = repr(monitor).splitlines()
    assert re.split(r"  +", header) == ["layer", "tokens", "load of each expert", *NUMBERS]
    assert row.split() == ["Fixed", "9", "·█·▁", "89%", "2.56", "0,", "2", "0.00"]
    page = monitor._repr_html_()
    assert page.count("<tr>") == 2 and "·█·▁" in page


COMPILED = """
import torch
from torch.utils.checkpoint import checkpoint
from moe_course.layers import MoELayer
from moe_course.training import ExpertMonitor

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (MoELayer(8, 16, num_experts=4, top_k=2) for _ in range(2))
    def forward(self, x):
        x = x + self.first(x)[0]
        return x + checkpoint(self.second, x, use_reentrant=False)[0]

torch.manual_seed(0)
net = Net()
x = torch.randn(12, 8)
with ExpertMonitor(net) as monitor:
    plain_out = net(x)
    expected = monitor.layers()
    monitor.reset()
    compiled = torch.compile(net, backend="aot_eager")
    for _ in range(3):
        out = compiled(x)
        out.sum().backward()
    torch.testing.assert_close(out, plain_out)
    for got, want in zip(monitor.layers(), expected, strict=True):
        assert got.layer == want.layer, (got.layer, want.layer)
        assert got.tokens_per_expert == tuple(3 * n for n in want.tokens_per_expert), (got, want)
with ExpertMonitor(compiled, training=False) as monitor:
    compiled.eval()
    compiled(x)
    assert [layer.layer for layer in monitor.layers()] == ["first.router", "second.router"], monitor
    assert monitor.layers()[0].tokens_per_expert == expected[0].tokens_per_expert
print("counted")
"""


def test_compiled_models_are_counted_right():
    """In a process of its own: dynamo cannot trace through the shape checks that tests switch on."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env=os.environ | {"MOE_COURSE_SHAPE_CHECKS": "0"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "counted", done.stderr[-2000:]


def test_the_course_is_imported_without_the_compiler():
    """It takes 1.5 s, in every process; torch imports it when somebody needs it."""
    code = "import sys, moe_course.exercises, moe_course.kernels; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
