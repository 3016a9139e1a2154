"""Exercise 01.model_parameters: total and active parameters of a whole published model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Generator

from ...layers import ffn_parameters
from ...layers.ffn import in_rows
from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make, draw
from .moe_cost import moe_cost

Counts = tuple[float, float]
Config = dict[str, Any]


@dataclass(frozen=True)
class _Parts:
    """Parameters of the parts of a model, biases included, and how many of each there are."""

    outside: int
    dense_layers: int
    moe_layers: int
    dense_ffn: int
    expert: int
    router: int
    E: int
    K: int
    S: int

    @property
    def counts(self) -> Counts:
        total = self.router + (self.E + self.S) * self.expert
        active = self.router + (self.K + self.S) * self.expert
        fixed = self.outside + self.dense_layers * self.dense_ffn
        return fixed + self.moe_layers * total, fixed + self.moe_layers * active


def _parts(config: Config, outside_ffn: int, biases: bool = True) -> _Parts:
    d_model, d_ff, activation = config["d_model"], config["d_ff"], config["activation"]
    with_bias = config["biases"] and biases
    return _Parts(
        outside=outside_ffn,
        dense_layers=config["num_dense_layers"],
        moe_layers=config["num_layers"] - config["num_dense_layers"],
        dense_ffn=ffn_parameters(d_model, config["dense_d_ff"], activation),
        expert=ffn_parameters(d_model, d_ff, activation) + (in_rows(d_ff, activation) + d_model) * with_bias,
        router=config["num_experts"] * (d_model + with_bias),
        E=config["num_experts"],
        K=config["top_k"],
        S=config["num_shared_experts"],
    )


def model_parameters(config: Config, outside_ffn: int) -> Counts:
    """Total and active parameters of a model from its shape and what lies outside its FFNs."""
    return _parts(config, outside_ffn).counts


def _on_moe_cost(config: Config, outside_ffn: int) -> Counts:
    c = config
    total, active, _ = moe_cost(
        1, c["d_model"], c["d_ff"], c["num_experts"], c["top_k"], c["num_shared_experts"], c["activation"]
    )
    if c["biases"]:
        expert_bias = (2 if c["activation"] == "swiglu" else 1) * c["d_ff"] + c["d_model"]
        total += c["num_experts"] + (c["num_experts"] + c["num_shared_experts"]) * expert_bias
        active += c["num_experts"] + (c["top_k"] + c["num_shared_experts"]) * expert_bias
    dense = c["num_dense_layers"] * ffn_parameters(c["d_model"], c["dense_d_ff"], c["activation"])
    moe_layers = c["num_layers"] - c["num_dense_layers"]
    return outside_ffn + dense + moe_layers * total, outside_ffn + dense + moe_layers * active


def _layer_by_layer(config: Config, outside_ffn: int) -> Counts:
    p = _parts(config, outside_ffn)
    total = active = outside_ffn
    for layer in range(config["num_layers"]):
        if layer < config["num_dense_layers"]:
            total, active = total + p.dense_ffn, active + p.dense_ffn
        else:
            total += p.router + p.E * p.expert + p.S * p.expert
            active += p.router + p.K * p.expert + p.S * p.expert
    return total, active


def _wrong(counts: Callable[[_Parts], Counts]) -> Callable[[Config, int], Counts]:
    return lambda config, outside_ffn: counts(_parts(config, outside_ffn))


def _changed(change: Callable[[Config], Config]) -> Callable[[Config, int], Counts]:
    """The right count of another model: the config with some entries replaced."""
    return lambda config, outside_ffn: model_parameters(config | change(config), outside_ffn)


def _model(num_experts: int, top_k: int, num_shared: int = 0, num_dense_layers: int = 0, biases: bool = False) -> Make:
    """A model of drawn widths; without experts, all its layers are dense."""

    def make(generator: Generator) -> Inputs:
        num_layers = draw(generator, 6, 13)
        config = {
            "num_layers": num_layers,
            "num_dense_layers": num_dense_layers if num_experts else num_layers,
            "d_model": 64 * draw(generator, 3, 9),
            "d_ff": 64 * draw(generator, 10, 18) if num_experts else 0,
            "dense_d_ff": 64 * draw(generator, 20, 40) if num_dense_layers or not num_experts else 0,
            "num_experts": num_experts,
            "top_k": top_k,
            "num_shared_experts": num_shared,
            "activation": "swiglu",
            "biases": biases,
        }
        return {"config": config, "outside_ffn": draw(generator, 1_000_000, 9_000_000)}

    return make


MODEL_PARAMETERS = Exercise(
    id="01.model_parameters",
    entry="model_parameters",
    title="Count a published model",
    points=4,
    difficulty=3,
    minutes=18,
    hints=(
        "Count one dense layer's FFN, count one MoE layer, multiply each by the number of such layers, and add what "
        "lies outside. `ffn_cost` and `moe_cost` do most of it.",
        "`moe_cost(1, …)` returns total and active parameters of one layer, shared experts included. With `biases`, "
        "each expert has 2F + D more numbers (SwiGLU) and the router E more. A biased expert that is idle has idle "
        "biases.",
        "For both counts: outside_ffn + num_dense_layers · dense FFN + (num_layers − num_dense_layers) · (router + n · "
        "expert), with n = E + S for the total and n = K + S for the active count. Put the biases into `router` and "
        "`expert` first.",
    ),
    reference=model_parameters,
    returns=("total", "active"),
    cases=(
        Case("8 experts, top-2 (Mixtral's form)", _model(8, 2)),
        Case("64 experts, top-8 (OLMoE's form)", _model(64, 8)),
        Case("biases (gpt-oss's form)", _model(32, 4, biases=True)),
        Case("dense layers and a shared expert (DeepSeek-V3's form)", _model(64, 8, num_shared=1, num_dense_layers=3)),
        Case("dense layers, none shared", _model(16, 2, num_dense_layers=2)),
        Case("no experts at all (Mistral's form)", _model(0, 0)),
        Case("everything at once", _model(16, 4, num_shared=2, num_dense_layers=1, biases=True)),
    ),
    misconceptions=(
        Misconception(
            "whole-model-per-expert",
            "You multiplied the whole model by the number of experts. Only the experts exist E times: attention, "
            "embedding and norms are there once. That is why Mixtral 8x7B has 46.7 and not 56 billion parameters.",
            _wrong(
                lambda p: (
                    max(p.E, 1)
                    * (p.outside + p.dense_layers * p.dense_ffn + p.moe_layers * (p.router + (1 + p.S) * p.expert)),
                    p.counts[1],
                )
            ),
        ),
        Misconception(
            "scaled-by-k-over-e",
            "You scaled the whole model by K/E to get the active count. Only the routed experts are idle in part; "
            "everything else serves every token.",
            _wrong(lambda p: (p.counts[0], p.counts[0] * p.K / p.E if p.E else p.counts[0])),
        ),
        Misconception(
            "moe-saves-memory",
            "Your total holds only the experts that one token uses. Another token uses others: all of them must be "
            "stored.",
            _wrong(lambda p: (p.counts[1], p.counts[1])),
        ),
        Misconception(
            "one-layer-only",
            "You counted the FFN of one layer. Each of the `num_layers` layers has experts of its own.",
            _wrong(
                lambda p: (
                    p.outside + p.dense_ffn + p.router + (p.E + p.S) * p.expert,
                    p.outside + p.dense_ffn + p.router + (p.K + p.S) * p.expert,
                )
            ),
        ),
        Misconception(
            "every-layer-sparse",
            "You gave experts to all layers and counted the dense FFNs as well. The first `num_dense_layers` layers "
            "have no experts.",
            _changed(lambda c: {"num_layers": c["num_layers"] + c["num_dense_layers"]}),
        ),
        Misconception(
            "dense-layers-forgotten",
            "The FFNs of the dense layers are missing. DeepSeek-V3 starts with three of them, each as wide as "
            "nine experts side by side.",
            _wrong(
                lambda p: (
                    p.counts[0] - p.dense_layers * p.dense_ffn,
                    p.counts[1] - p.dense_layers * p.dense_ffn,
                )
            ),
        ),
        Misconception(
            "dense-layers-idle",
            "You left the dense layers out of the active count. They have no router: every token goes through them.",
            _wrong(lambda p: (p.counts[0], p.counts[1] - p.dense_layers * p.dense_ffn)),
        ),
        Misconception(
            "dense-as-wide-as-an-expert",
            "You used the experts' `d_ff` for the dense layers. They have a width of their own, `dense_d_ff`.",
            _changed(lambda c: {"dense_d_ff": c["d_ff"]}),
        ),
        Misconception(
            "shared-among-the-k",
            "Your active count lacks the shared experts. Each token uses its K routed ones and every shared one.",
            _wrong(lambda p: (p.counts[0], p.counts[1] - p.moe_layers * p.S * p.expert)),
        ),
        Misconception(
            "biases-forgotten",
            "You left out the biases: with `biases`, 2F + D numbers for each expert and E for the router.",
            lambda config, outside_ffn: _parts(config, outside_ffn, biases=False).counts,
        ),
        Misconception(
            "router-forgotten",
            "You left out the routers: a matrix of E·D numbers in each MoE layer, total and active.",
            _wrong(lambda p: (p.counts[0] - p.moe_layers * p.router, p.counts[1] - p.moe_layers * p.router)),
        ),
        Misconception(
            "outside-idle",
            "Your active count holds the FFNs only. Attention, embedding, norms and head serve every token too.",
            _wrong(lambda p: (p.counts[0], p.counts[1] - p.outside)),
        ),
    ),
    alternatives=(_on_moe_cost, _layer_by_layer),
)
