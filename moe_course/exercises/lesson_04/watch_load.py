"""Exercise 04.watch_load: a load counter that counts each token once."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make

Watched = tuple[Tensor, Tensor, Tensor]


def watch_load(expert_ids: Tensor, num_experts: int, training: Tensor, in_backward: Tensor) -> Watched:
    """Ids (C, T, K) of C calls and their flags (C,) to loads (E,), MaxVio and dead experts (E,)."""
    return _report(_loads_of_calls(expert_ids, num_experts)[training & ~in_backward].sum(0))


def _loads_of_calls(expert_ids: Tensor, num_experts: int) -> Tensor:
    """(C, E)."""
    return F.one_hot(expert_ids, num_experts).sum((1, 2))


def _report(loads: Tensor) -> Watched:
    return loads, torch.tensor(_violation(loads)), loads == 0


def _violation(loads: Tensor) -> float:
    total = int(loads.sum())
    return int(loads.max()) * len(loads) / total - 1 if total else 0.0


def _number_or_tensor(watched: Watched) -> Watched:
    """MaxVio may be a number or a scalar tensor, of any precision."""
    loads, violation, dead = watched
    return loads, torch.as_tensor(violation, dtype=torch.float32), dead


def _calls(flags: str, num_tokens: int, num_experts: int, top_k: int, unused: tuple[int, ...] = ()) -> Make:
    """One call for each letter: t training, e evaluation, r the recomputation of the training call before it.

    Every call favours other experts; evaluation alone uses all of them.
    """

    def make(generator: Generator) -> Inputs:
        calls: list[Tensor] = []
        for call, flag in enumerate(flags):
            preference = torch.linspace(0.7, 0, num_experts).roll(call)
            scores = torch.rand(num_tokens, num_experts, generator=generator) + preference
            if flag != "e":
                scores[:, list(unused)] -= 3.0
            expert_ids = scores.topk(top_k, dim=-1).indices
            calls.append(calls[-1] if flag == "r" else expert_ids)
        stacked = torch.stack(calls) if calls else torch.zeros(0, num_tokens, top_k, dtype=torch.int64)
        training = torch.tensor([flag != "e" for flag in flags], dtype=torch.bool)
        in_backward = torch.tensor([flag == "r" for flag in flags], dtype=torch.bool)
        return {
            "expert_ids": stacked,
            "num_experts": num_experts,
            "training": training,
            "in_backward": in_backward,
        }

    return make


def _by_bincount(expert_ids: Tensor, num_experts: int, training: Tensor, in_backward: Tensor) -> Watched:
    counted = expert_ids[training.logical_and(in_backward.logical_not())]
    loads = torch.bincount(counted.flatten(), minlength=num_experts)
    mean = loads.double().mean().item()
    return loads, torch.tensor(loads.max().item() / mean - 1 if mean else 0.0), loads.eq(0)


def _call_by_call(
    expert_ids: Tensor, num_experts: int, training: Tensor, in_backward: Tensor
) -> tuple[Tensor, float, Tensor]:
    loads = [0] * num_experts
    for ids, trains, again in zip(expert_ids.tolist(), training.tolist(), in_backward.tolist(), strict=True):
        for expert in (e for row in ids for e in row) if trains and not again else ():
            loads[expert] += 1
    mean = sum(loads) / num_experts
    violation = (max(loads) - mean) / mean if mean else 0.0
    return torch.tensor(loads), violation, torch.tensor([load == 0 for load in loads])


def _counting(which: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Watched]:
    """Right in all but which calls count: `which(training, in_backward)`."""
    return lambda expert_ids, num_experts, training, in_backward: _report(
        _loads_of_calls(expert_ids, num_experts)[which(training, in_backward)].sum(0)
    )


def _reporting(report: Callable[[Tensor, Tensor], Watched]) -> Callable[..., Watched]:
    """Right calls, then `report(loads, loads of each call that counts)`."""

    def wrong(expert_ids: Tensor, num_experts: int, training: Tensor, in_backward: Tensor) -> Watched:
        each = _loads_of_calls(expert_ids, num_experts)[training & ~in_backward]
        return report(each.sum(0), each)

    return wrong


def _mean_of_violations(loads: Tensor, each: Tensor) -> Watched:
    violations = [_violation(call) for call in each]
    return loads, torch.tensor(sum(violations) / max(len(violations), 1)), loads == 0


def _mean_of_the_living(loads: Tensor, each: Tensor) -> Watched:
    living = loads[loads > 0]
    return loads, living.max() / living.float().mean() - 1 if len(living) else torch.tensor(0.0), loads == 0


def _no_minlength(expert_ids: Tensor, num_experts: int, training: Tensor, in_backward: Tensor) -> Watched:
    return _report(torch.bincount(torch.cat([expert_ids[training & ~in_backward].flatten(), torch.tensor([0])])))


WATCH_LOAD = Exercise(
    id="04.watch_load",
    entry="watch_load",
    title="Count each token once",
    points=3,
    difficulty=2,
    minutes=12,
    hints=(
        "Which calls bring new tokens that the router trains on? Leave the others out first, and the rest is a count.",
        "`training & ~in_backward` says which calls count. Add their loads up *before* you look at the imbalance: "
        "several calls may be the micro-batches of one step.",
        "`counted = expert_ids[training & ~in_backward]`; `loads = torch.bincount(counted.flatten(), "
        "minlength=num_experts)`; MaxVio is the largest load over the mean load, minus 1, and 0 if there is no load; "
        "`loads == 0` are the dead.",
    ),
    reference=watch_load,
    returns=("loads", "max_violation", "dead"),
    cases=(
        Case("two training calls", _calls("tt", 6, 4, 1)),
        Case("evaluation between training", _calls("tete", 8, 5, 2)),
        Case("with activation checkpointing", _calls("trtr", 8, 5, 2)),
        Case("micro-batches, evaluation and recomputation", _calls("trtrtetr", 10, 8, 2)),
        Case("experts that only evaluation uses", _calls("tetr", 9, 8, 2, unused=(2, 6, 7))),
        Case("evaluation alone", _calls("ee", 5, 4, 1)),
        Case("no call at all", _calls("", 5, 4, 1)),
    ),
    misconceptions=(
        Misconception(
            "everything-counted",
            "You counted every call. Evaluation is not what the router trains on, and a call inside the backward pass "
            "is activation checkpointing computing the same tokens again.",
            _counting(lambda training, in_backward: torch.ones_like(training)),
        ),
        Misconception(
            "evaluation-counted",
            "You counted calls in evaluation mode. A validation set between two steps then changes the load that you "
            "report, and with it whatever you steer by that load.",
            _counting(lambda training, in_backward: ~in_backward),
        ),
        Misconception(
            "recomputation-counted",
            "Tokens under activation checkpointing count twice: once in the forward pass, once when the backward pass "
            "computes it again. Leave out calls inside the backward pass.",
            _counting(lambda training, in_backward: training),
        ),
        Misconception(
            "last-call-only",
            "You kept the last call and overwrote the others. Loads add up over the micro-batches of a step.",
            _reporting(lambda loads, each: _report(each[-1] if len(each) else loads)),
        ),
        Misconception(
            "violations-averaged",
            "You averaged the MaxVio of the calls. Small batches are uneven by chance, each in its own way, so that "
            "mean is larger than the imbalance of the step. Add the loads first.",
            _reporting(_mean_of_violations),
        ),
        Misconception(
            "minus-one-forgotten",
            "You returned the largest load over the mean. MaxVio is the *excess*: subtract 1, so that an even load "
            "gives 0.",
            _reporting(lambda loads, each: (loads, torch.tensor(_violation(loads) + 1), loads == 0)),
        ),
        Misconception(
            "nan-without-load",
            "Where no call counts, your MaxVio is 0/0, NaN. Such a stretch has no imbalance: return 0. One NaN in a "
            "log is enough to spoil an average, or an alarm.",
            _reporting(lambda loads, each: (loads, loads.max() / loads.float().mean() - 1, loads == 0)),
        ),
        Misconception(
            "mean-over-the-living",
            "Your mean leaves dead experts out, so the imbalance looks smaller the more experts are dead. Divide by "
            "all E.",
            _reporting(_mean_of_the_living),
        ),
        Misconception(
            "dead-in-some-call",
            "You called an expert dead that got no token in *some* call. It is dead if it got none in all of them.",
            _reporting(lambda loads, each: (*_report(loads)[:2], (each == 0).any(0) | (loads == 0))),
        ),
        Misconception(
            "last-experts-forgotten",
            "Your loads end at the largest id that occurs, so the last dead experts are not even listed. Use "
            "`minlength=num_experts`.",
            _no_minlength,
        ),
    ),
    alternatives=(_by_bincount, _call_by_call),
    normalise=_number_or_tensor,
)
