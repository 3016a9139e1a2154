"""`bench layer` at sizes that take no time: what is compared, what is counted, which bars apply."""

import json

import pytest
import torch

from moe_course.bench import layer as bench_layer
from moe_course.bench import layer_report, peers
from moe_course.bench.layer import check_agreement, measure, run, saved_bytes
from moe_course.bench.layer_report import judge, present
from moe_course.bench.peers import DENSE, OURS, PEERS, Contender, contenders
from moe_course.bench.report import as_json
from moe_course.bench.targets import FORWARD, SCALING, SIZES, TIME_BARS, TRAIN, Size

TINY = Size(tokens=12, d_model=8, d_ff=16, num_experts=4, top_k=2)


def test_contenders_have_one_baseline_each_and_equal_weights():
    layers = contenders(TINY)
    x = torch.randn(12, 8)
    check_agreement(layers, x)
    for activation in ("gelu", "swiglu"):
        dense, ours = layers[DENSE[activation]], layers[OURS[activation]]
        active = sum(p.numel() for p in ours.parameters[1:]) * 2 // 4  # two experts of four, router apart
        assert sum(p.numel() for p in dense.parameters) == active
        for peer in PEERS[activation]:
            assert sum(p.numel() for p in layers[peer].parameters) == sum(p.numel() for p in ours.parameters)


def test_disagreement_is_an_error():
    layers = contenders(TINY)
    wrong = layers[OURS["gelu"]]
    layers["wrong"] = Contender(lambda x: 1.01 * wrong.forward(x), wrong.parameters, "gelu")
    with pytest.raises(RuntimeError, match="wrong disagrees with MoELayer"):
        check_agreement(layers, torch.randn(12, 8))


def test_slow_contenders_stay_out_of_large_sizes(monkeypatch):
    assert "einsum_dispatch" in contenders(TINY)
    monkeypatch.setitem(peers.MAX_TOKENS, "einsum_dispatch", 11)
    monkeypatch.setattr(peers, "EAGER_MAX_EXPERTS", 3)
    assert "einsum_dispatch" not in contenders(TINY)
    assert {"transformers, eager", "Mixtral block, eager"}.isdisjoint(contenders(TINY))


def test_without_transformers_its_rows_are_left_out_with_a_remark(monkeypatch):
    for module in (peers, layer_report):
        monkeypatch.setattr(module, "has_transformers", lambda: False)
    assert {c.activation for c in contenders(TINY).values()} == {"gelu"}
    rows = measure("S", TINY, 1, lambda text: None)
    report = present(rows)
    assert any("moe-course\\[hf]" in note for note in report.notes)
    assert not any("transformers" in str(verdict) for verdict in report.verdicts)


def test_measurements_of_one_size():
    told = []
    rows = measure("M", TINY, 2, told.append)
    layers = contenders(TINY).keys()
    for mode in (TRAIN, FORWARD):
        times = {r["layer"]: r for r in rows if r["kind"] == "time" and r["mode"] == mode}
        assert times.keys() == layers
        assert times[DENSE["gelu"]]["cpu_ratio"] == times[DENSE["swiglu"]]["cpu_ratio"] == 1
        ours = times[OURS["swiglu"]]
        assert ours["baseline"] == DENSE["swiglu"]
        assert len(ours["cpu_ratios"]) == 2
        assert ours["over_transformers"] > 0
    assert {r["layer"] for r in rows if r["kind"] == "memory"} == layers
    assert "M: forward + backward, round 2 of 2" in told
    report = json.loads(as_json(present(rows)))
    assert len(report["bars"]) == 1 + 2 * 2 + 1  # time; transformers, twice in both modes; memory


def test_run_takes_the_sizes_asked_for(monkeypatch):
    for name in ("SIZES", "SCALING"):
        monkeypatch.setattr(bench_layer, name, dict.fromkeys(getattr(bench_layer, name), TINY))
    measured = []
    monkeypatch.setattr(bench_layer, "measure", lambda name, *rest: measured.append(name) or [])
    monkeypatch.setattr(bench_layer, "present", lambda measurements: measurements)
    run(["P", "E"], 1, lambda text: None)
    assert measured == ["P", "E4", "E16", "E64", "E256"]
    measured.clear()
    run([], 1, lambda text: None)
    assert measured == ["S", "M", "L", "F", "P", "E4", "E16", "E64", "E256"]


def test_saved_bytes_counts_each_storage_once_and_neither_input_nor_weights():
    weight = torch.nn.Parameter(torch.randn(8, 8))
    x = torch.randn(5, 8, requires_grad=True)

    def forward(x):
        h = (x @ weight).exp()  # saves x, weight and h
        return (h.T @ h).sum()  # saves h twice, as two views

    assert saved_bytes(Contender(forward, (weight,), "gelu"), x) == 5 * 8 * 4


def test_the_dense_ffn_saves_its_hidden_layer_before_and_after_the_activation():
    layers = contenders(TINY)
    x = torch.randn(12, 8, requires_grad=True)
    assert saved_bytes(layers[DENSE["gelu"]], x) == 2 * 4 * 12 * (2 * 16)


def row(layer, size, mode=TRAIN, activation="gelu", ratio=1.0, **more):
    return {
        "kind": "time",
        "size": size,
        "mode": mode,
        "layer": layer,
        "activation": activation,
        "cpu_ratio": ratio,
        "wall_ratio": ratio,
        "cpu_ms": 1.0,
        "wall_ms": 1.0,
        **more,
    }


def test_the_bars_of_each_size_are_applied_to_our_layer_only():
    rows = [row(OURS["gelu"], size, ratio=9.0) for size in TIME_BARS]
    rows += [row("tutorial: expert masks", size, ratio=99.0) for size in TIME_BARS]
    rows += [row(OURS["gelu"], "S", mode=FORWARD, ratio=99.0)]
    verdicts = list(judge(rows))
    assert [v.bar for v in verdicts] == list(TIME_BARS.values())
    assert {v.measured for v in verdicts} == {9.0}
    assert all(v.state == "fails" for v in verdicts)


def test_bars_over_transformers_are_stricter_for_fine_grained_experts():
    rows = [row(OURS["gelu"], size, over_transformers=0.9) for size in SIZES]
    rows += [row(OURS["swiglu"], "F", activation="swiglu", over_transformers=0.9)]
    states = [v.state for v in judge(rows) if "transformers" in v.bar.name]
    assert states == ["holds", "holds", "holds", "fails", "holds", "holds"]  # S M L F P, and F with SwiGLU


def test_memory_has_no_noise():
    memory = {"kind": "memory", "size": "F", "layer": OURS["gelu"], "bytes": 1, "over_minimum": 1.16}
    (verdict,) = judge([memory])
    assert verdict.state == "fails"


def test_figure_has_a_panel_for_what_was_measured():
    sizes = [row(name, size) for name in (DENSE["gelu"], OURS["gelu"]) for size in ("S", "M")]
    series = [row(name, size) for name in (DENSE["gelu"], OURS["gelu"]) for size in SCALING]
    both = present(sizes + series).figure()
    assert [a.text for a in both.layout.annotations] == ["Cost at each size", "Cost as experts are added"]
    assert both.layout.title.text and both.layout.yaxis.title.text and both.layout.xaxis2.title.text
    (bars,) = (trace for trace in both.data if trace.type == "bar" and trace.name == OURS["gelu"])
    assert list(bars.x) == ["S", "M"]
    (line,) = (trace for trace in both.data if trace.type == "scatter" and trace.name == OURS["gelu"])
    assert list(line.x) == [4, 16, 64, 256]
    assert [a.text for a in present(series).figure().layout.annotations] == ["Cost as experts are added"]
