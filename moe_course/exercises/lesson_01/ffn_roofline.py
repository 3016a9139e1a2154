"""Exercise 01.ffn_roofline: the least time an FFN can take on a machine of given speeds."""

from collections.abc import Callable

from torch import Generator

from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make, draw

Bound = tuple[float, float]


def ffn_roofline(
    tokens: int, d_model: int, d_ff: int, peak: float, bandwidth: float, bytes_per_number: int = 4
) -> Bound:
    """Arithmetic intensity of a GELU FFN in FLOP per byte, and the least seconds that its forward pass can take."""
    flops = 4 * tokens * d_model * d_ff
    traffic = bytes_per_number * (2 * d_model * d_ff + 2 * tokens * d_model)
    return flops / traffic, max(flops / peak, traffic / bandwidth)


def _through_the_roof(
    tokens: int, d_model: int, d_ff: int, peak: float, bandwidth: float, bytes_per_number: int = 4
) -> Bound:
    flops = 2 * tokens * (d_ff * d_model + d_model * d_ff)
    weights, activations = 2 * d_model * d_ff, 2 * tokens * d_model
    intensity = flops / ((weights + activations) * bytes_per_number)
    return intensity, flops / min(peak, intensity * bandwidth)


def _by_cases(tokens: int, d_model: int, d_ff: int, peak: float, bandwidth: float, bytes_per_number: int = 4) -> Bound:
    # 4TDF / 2bD(F + T), with D and a factor 2 cancelled.
    intensity = 2 * tokens * d_ff / (bytes_per_number * (d_ff + tokens))
    flops = 4 * tokens * d_model * d_ff
    if intensity > peak / bandwidth:
        return intensity, flops / peak
    return intensity, flops / intensity / bandwidth


def _wrong(
    flops: Callable[[int, int, int], float] = lambda tokens, d_model, d_ff: 4 * tokens * d_model * d_ff,
    numbers: Callable[[int, int, int], float] = lambda tokens, d_model, d_ff: 2 * d_model * (d_ff + tokens),
    size: Callable[[int], int] = lambda bytes_per_number: bytes_per_number,
    seconds: Callable[[float, float], float] = max,
    intensity: Callable[[float, float], float] = lambda flops, traffic: flops / traffic,
) -> Callable[..., Bound]:
    """The right solution with one of its five steps replaced."""

    def wrong(tokens: int, d_model: int, d_ff: int, peak: float, bandwidth: float, bytes_per_number: int = 4) -> Bound:
        work = flops(tokens, d_model, d_ff)
        traffic = size(bytes_per_number) * numbers(tokens, d_model, d_ff)
        return intensity(work, traffic), seconds(work / peak, traffic / bandwidth)

    return wrong


def _machine(tokens: tuple[int, int], bytes_per_number: int = 4) -> Make:
    """An FFN on a machine of 40 to 80 GFLOP/s and 5 to 10 GB/s."""

    def make(generator: Generator) -> Inputs:
        return {
            "tokens": draw(generator, *tokens),
            "d_model": draw(generator, 100, 300),
            "d_ff": draw(generator, 400, 900),
            "peak": 1e9 * draw(generator, 40, 80),
            "bandwidth": 1e9 * draw(generator, 5, 10),
            "bytes_per_number": bytes_per_number,
        }

    return make


def _round_numbers(generator: Generator) -> Inputs:
    return {"tokens": 10, "d_model": 100, "d_ff": 1000, "peak": 1e9, "bandwidth": 1e9, "bytes_per_number": 4}


FFN_ROOFLINE = Exercise(
    id="01.ffn_roofline",
    entry="ffn_roofline",
    title="A roofline for the FFN",
    points=2,
    difficulty=2,
    minutes=12,
    hints=(
        "Three quantities: the FLOPs (your `ffn_cost` knows), the bytes that must move, and the two times that follow "
        "from them. The machine computes and loads at the same time.",
        "Bytes: both matrices once, whatever the number of tokens, and for each token D numbers in and D numbers out. "
        "Mind `bytes_per_number`.",
        "flops = 4·T·D·F; traffic = bytes_per_number · (2·D·F + 2·T·D). The intensity is flops / traffic, and the time "
        "is the larger of flops / peak and traffic / bandwidth.",
    ),
    reference=ffn_roofline,
    returns=("intensity", "seconds"),
    cases=(
        Case("round numbers", _round_numbers),
        Case("one token", _machine((1, 2))),
        Case("a few tokens: bound by memory", _machine((3, 6))),
        Case("many tokens: bound by compute", _machine((300, 700))),
        Case("2 bytes a number, few tokens", _machine((3, 5), bytes_per_number=2)),
        Case("2 bytes a number, many tokens", _machine((300, 700), bytes_per_number=2)),
    ),
    misconceptions=(
        Misconception(
            "times-added",
            "You added the time to compute and the time to load. The two go on at once, so the longer one decides; "
            "that is why a roofline has a corner.",
            _wrong(seconds=lambda compute, load: compute + load),
        ),
        Misconception(
            "shorter-time",
            "You took the shorter of the two times. The work is done when both computing and loading are: the longer "
            "one decides.",
            _wrong(seconds=min),
        ),
        Misconception(
            "memory-ignored",
            "Your time follows from the FLOPs alone. With few tokens the machine waits for the weights: compare with "
            "bytes / bandwidth.",
            _wrong(seconds=lambda compute, load: compute),
        ),
        Misconception(
            "weights-for-each-token",
            "You load the weights anew for each token. A batch loads them once and uses them for every token: that "
            "is what makes batches efficient.",
            _wrong(numbers=lambda tokens, d_model, d_ff: tokens * (2 * d_model * d_ff + 2 * d_model)),
        ),
        Misconception(
            "weights-forgotten",
            "Your traffic holds the tokens but not the weights. With few tokens the 2·D·F weights are nearly all of "
            "it.",
            _wrong(numbers=lambda tokens, d_model, d_ff: 2 * tokens * d_model),
        ),
        Misconception(
            "tokens-not-moved",
            "Your traffic holds the weights but not the tokens: D numbers in and D numbers out for each.",
            _wrong(numbers=lambda tokens, d_model, d_ff: 2 * d_model * d_ff),
        ),
        Misconception(
            "hidden-moved",
            "You let the hidden values travel to memory and back. A bound from below assumes the best: they stay in "
            "the cache.",
            _wrong(numbers=lambda tokens, d_model, d_ff: 2 * d_model * d_ff + 2 * tokens * (d_model + d_ff)),
        ),
        Misconception(
            "numbers-not-bytes",
            "You counted numbers where bytes are asked. Bandwidth is in bytes per second: use `bytes_per_number`.",
            _wrong(size=lambda bytes_per_number: 1),
        ),
        Misconception(
            "always-four-bytes",
            "You count 4 bytes a number, always. `bytes_per_number` says how many there are; bfloat16 has 2, and half "
            "the traffic.",
            _wrong(size=lambda bytes_per_number: 4),
        ),
        Misconception(
            "intensity-upside-down",
            "Your intensity is bytes per FLOP. It is FLOPs per byte: large when each loaded byte is used often.",
            _wrong(intensity=lambda flops, traffic: traffic / flops),
        ),
        Misconception(
            "multiply-add-as-one",
            "You counted a multiply-add as one operation; it is 2 FLOPs. Both matrices together take 4·T·D·F.",
            _wrong(flops=lambda tokens, d_model, d_ff: 2 * tokens * d_model * d_ff),
        ),
    ),
    alternatives=(_through_the_roof, _by_cases),
)
