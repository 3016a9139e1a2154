"""`moe-course bench layer`: the MoE layer against the dense FFN of equal active FLOPs, and against other people's.

One thread, float32. Three questions: what a layer costs at five sizes, whether its cost follows active compute as
experts are added, and how much it saves for the backward pass.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moe_course.bench.layer_report import present
from moe_course.bench.peers import DENSE, OURS, PEERS, Contender, contenders
from moe_course.bench.report import Report
from moe_course.bench.targets import FORWARD, MEMORY_SIZES, SCALING, SIZES, TRAIN, Size
from moe_course.bench.timing import interleave, median_ratio, one_thread, ratios

SIZE_NAMES = (*SIZES, "E")  # what --size accepts; E is the series of SCALING
SCALING_LAYERS = {DENSE["gelu"], OURS["gelu"], "tutorial: expert masks", *PEERS["gelu"]}

Measurement = dict[str, Any]
Progress = Callable[[str], None]


def run(sizes: list[str], repeats: int, progress: Progress) -> Report:
    """Measure at the given sizes, each one of SIZE_NAMES; an empty list means all."""
    wanted = {name: size for name, size in SIZES.items() if name in (sizes or SIZE_NAMES)}
    if "E" in (sizes or SIZE_NAMES):
        wanted |= SCALING
    measurements: list[Measurement] = []
    with one_thread():
        for name, size in wanted.items():
            measurements += measure(name, size, repeats, progress)
    return present(measurements)


def measure(name: str, size: Size, repeats: int, progress: Progress) -> list[Measurement]:
    """Measure every layer at one size."""
    progress(f"{name}: building the layers")
    layers = contenders(size)
    if name in SCALING:
        layers = {key: layer for key, layer in layers.items() if key in SCALING_LAYERS}
    x = torch.randn(size.tokens, size.d_model, requires_grad=True)
    check_agreement(layers, x)
    measurements = []
    for mode in (TRAIN,) if name in SCALING else (TRAIN, FORWARD):
        rows = measure_times(layers, x, mode, repeats, progress, f"{name}: {mode}")
        measurements += [{"kind": "time", "size": name, "mode": mode, **row} for row in rows]
    if name in MEMORY_SIZES:
        minimum = 4 * size.top_k * size.tokens * size.d_ff
        measurements += [{"kind": "memory", "size": name, **row} for row in measure_memory(layers, x, minimum)]
    return measurements


def check_agreement(layers: dict[str, Contender], x: Tensor) -> None:
    """Raise if two MoE layers with the same activation disagree: they would not be running the same race."""
    with torch.no_grad():
        for key, layer in layers.items():
            if key not in DENSE.values():
                ours = layers[OURS[layer.activation]].forward(x)
                theirs = layer.forward(x)
                if not torch.allclose(theirs, ours, rtol=1e-4, atol=1e-4):
                    raise RuntimeError(f"{key} disagrees with {OURS[layer.activation]}: no race between them is fair")


def measure_times(
    layers: dict[str, Contender], x: Tensor, mode: str, repeats: int, progress: Progress, title: str
) -> list[Measurement]:
    """Time every layer, as ratios to the dense FFN with the same activation."""
    cotangent = torch.randn_like(x)
    calls = {key: _call(layer, x, cotangent if mode == TRAIN else None) for key, layer in layers.items()}
    samples = interleave(calls, rounds=repeats, on_round=lambda i: progress(f"{title}, round {i} of {repeats}"))
    rows = []
    for key, layer in layers.items():
        baseline = samples[DENSE[layer.activation]]
        row: Measurement = {
            "layer": key,
            "activation": layer.activation,
            "baseline": DENSE[layer.activation],
            "cpu_ratio": median_ratio(samples[key], baseline),
            "wall_ratio": median_ratio(samples[key], baseline, "wall"),
            "cpu_ratios": ratios(samples[key], baseline),
            "cpu_ms": 1000 * statistics.median(sample.cpu for sample in samples[key]),
            "wall_ms": 1000 * statistics.median(sample.wall for sample in samples[key]),
        }
        peers = [samples[peer] for peer in PEERS[layer.activation] if peer in samples]
        if key == OURS[layer.activation] and peers:
            # The larger ratio is the one to the faster of the two.
            row["over_transformers"] = max(median_ratio(samples[key], peer) for peer in peers)
        rows.append(row)
    return rows


def _call(layer: Contender, x: Tensor, cotangent: Tensor | None) -> Callable[[], object]:
    """Forward alone without autograd, or forward + backward where there is a cotangent."""
    if cotangent is None:
        return torch.no_grad()(lambda: layer.forward(x))
    wanted = [x, *layer.parameters]
    # torch.autograd.grad adds nothing up in .grad. A small batch leaves experts without tokens: allow_unused.
    return lambda: torch.autograd.grad(layer.forward(x), wanted, cotangent, allow_unused=True)


def measure_memory(layers: dict[str, Contender], x: Tensor, minimum: int) -> list[Measurement]:
    """Count what each layer saves for backward, in bytes and over the minimum: the pre-activations in float32."""
    rows = []
    for key, layer in layers.items():
        saved = saved_bytes(layer, x)
        tensors = 2 if layer.activation == "swiglu" else 1  # a gated expert has two pre-activations
        rows.append({"layer": key, "bytes": saved, "over_minimum": saved / (tensors * minimum)})
    return rows


def saved_bytes(layer: Contender, x: Tensor) -> int:
    """Bytes of the distinct storages that autograd keeps from a forward pass, x and the parameters apart."""
    given = {tensor.untyped_storage().data_ptr() for tensor in (x, *layer.parameters)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = layer.forward(x)  # held until the end: an address freed early could be counted once for two
    total = sum(kept.values())
    del out
    return total
