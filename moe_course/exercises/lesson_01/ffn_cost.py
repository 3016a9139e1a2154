"""Exercise 01.ffn_cost: what one FFN weighs and what it costs to run."""

from collections.abc import Callable

from torch import Generator

from ...layers import ffn_flops, ffn_parameters
from ...layers.ffn import Activation
from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make, draw

Cost = tuple[float, float]


def ffn_cost(tokens: int, d_model: int, d_ff: int, activation: Activation) -> Cost:
    """Parameters of one FFN, and FLOPs of its forward pass over some tokens."""
    return ffn_parameters(d_model, d_ff, activation), ffn_flops(tokens, d_model, d_ff, activation)


def _matrix_by_matrix(tokens: int, d_model: int, d_ff: int, activation: Activation) -> Cost:
    shapes = [(d_ff, d_model), (d_model, d_ff)]
    if activation == "swiglu":
        shapes.append((d_ff, d_model))
    return sum(rows * columns for rows, columns in shapes), sum(2 * tokens * r * c for r, c in shapes)


def _packed(tokens: int, d_model: int, d_ff: int, activation: Activation) -> Cost:
    rows_in = {"gelu": d_ff, "swiglu": 2 * d_ff}[activation]
    parameters = rows_in * d_model + d_model * d_ff
    return parameters, 2 * parameters * tokens


def _from_right(change: Callable[[float, float], Cost]) -> Callable[..., Cost]:
    """`change` of the right parameters and FLOPs."""
    return lambda tokens, d_model, d_ff, activation: change(*ffn_cost(tokens, d_model, d_ff, activation))


def _from_matrices(matrices: Callable[[Activation], int]) -> Callable[..., Cost]:
    """The cost of an FFN of as many matrices as `matrices(activation)` says."""

    def wrong(tokens: int, d_model: int, d_ff: int, activation: Activation) -> Cost:
        parameters = matrices(activation) * d_model * d_ff
        return parameters, 2 * tokens * parameters

    return wrong


def _biases_counted(tokens: int, d_model: int, d_ff: int, activation: Activation) -> Cost:
    parameters, flops = ffn_cost(tokens, d_model, d_ff, activation)
    return parameters + (2 * d_ff if activation == "swiglu" else d_ff) + d_model, flops


def _drawn(activation: Activation, tokens: tuple[int, int] = (3, 100)) -> Make:
    def make(generator: Generator) -> Inputs:
        sizes = {"d_model": draw(generator, 5, 500), "d_ff": draw(generator, 501, 3000)}
        return {"tokens": draw(generator, *tokens), **sizes, "activation": activation}

    return make


def _fixed(**inputs: int | str) -> Make:
    return lambda generator: dict(inputs)


FFN_COST = Exercise(
    id="01.ffn_cost",
    entry="ffn_cost",
    title="What an FFN costs",
    points=2,
    difficulty=1,
    minutes=8,
    hints=(
        "How many matrices does each kind have, and of what shape? GELU: `w_in` and `w_out`. SwiGLU: its `w_in` is "
        "twice as tall.",
        "One token times a matrix of D·F numbers takes D·F multiplications and as many additions: 2·D·F FLOPs. The "
        "weights are there once, whatever the number of tokens.",
        "parameters = m · d_model · d_ff with m = 2 for GELU and 3 for SwiGLU; flops = 2 · tokens · parameters.",
    ),
    reference=ffn_cost,
    returns=("parameters", "flops"),
    cases=(
        Case("GELU, one token, 2 × 3", _fixed(tokens=1, d_model=2, d_ff=3, activation="gelu")),
        Case("SwiGLU, one token, 2 × 3", _fixed(tokens=1, d_model=2, d_ff=3, activation="swiglu")),
        Case("GELU, many tokens", _drawn("gelu")),
        Case("SwiGLU, many tokens", _drawn("swiglu")),
        Case("Mistral 7B's FFN on 4096 tokens", _fixed(tokens=4096, d_model=4096, d_ff=14_336, activation="swiglu")),
        Case("no tokens", _drawn("gelu", tokens=(0, 1))),
    ),
    misconceptions=(
        Misconception(
            "multiply-add-as-one",
            "Your FLOPs are half of what they should be: you counted a multiply-add as one operation. It is a "
            "multiplication and an addition, 2 FLOPs. Some papers count multiply-adds and call them MACs.",
            _from_right(lambda parameters, flops: (parameters, flops / 2)),
        ),
        Misconception(
            "swiglu-as-two",
            "You counted two matrices for SwiGLU. It has three: gate, up and down. The packed `w_in` is (2F, D).",
            _from_matrices(lambda activation: 2),
        ),
        Misconception(
            "swiglu-as-four",
            "You counted four matrices for SwiGLU. Gate and up are multiplied into F values, so `w_out` stays (D, F): "
            "three in all.",
            _from_matrices(lambda activation: 4 if activation == "swiglu" else 2),
        ),
        Misconception(
            "down-forgotten",
            "You counted only the way up to the hidden width. The way down, `w_out`, is a matrix of the same size.",
            _from_matrices(lambda activation: 2 if activation == "swiglu" else 1),
        ),
        Misconception(
            "biases-counted",
            "You counted biases. The FFNs of this course have none, like those of Mixtral, OLMoE and Qwen3.",
            _biases_counted,
        ),
        Misconception(
            "tokens-forgotten",
            "Your FLOPs do not depend on the number of tokens. Every token goes through both matrices.",
            lambda tokens, d_model, d_ff, activation: ffn_cost(1, d_model, d_ff, activation),
        ),
        Misconception(
            "tokens-in-parameters",
            "Your parameters grow with the number of tokens. All tokens share the same weights; only the work grows.",
            lambda tokens, d_model, d_ff, activation: (
                ffn_parameters(d_model, d_ff, activation) * tokens,
                ffn_flops(tokens, d_model, d_ff, activation),
            ),
        ),
        Misconception(
            "training-counted",
            "You counted a training step, 6 FLOPs for each parameter and token. The forward pass alone is asked; the "
            "backward pass takes twice as much again.",
            _from_right(lambda parameters, flops: (parameters, 3 * flops)),
        ),
        Misconception(
            "bytes-not-parameters",
            "You returned bytes: 4 for each float32 parameter. Count the numbers themselves.",
            _from_right(lambda parameters, flops: (4 * parameters, flops)),
        ),
    ),
    alternatives=(_matrix_by_matrix, _packed),
)
