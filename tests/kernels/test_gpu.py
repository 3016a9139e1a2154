"""What only a GPU can show: compiled kernels, bf16 on tensor cores, every configuration, sizes like real ones."""

import pytest
import torch

from moe_course.kernels import launch as launching
from moe_course.kernels import triton_dispatch
from moe_course.kernels.launch import recording
from tests.kernels.problems import check_against_float64, gradients, problem

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "num_experts", "top_k"), [(16, 8, 2), (1000, 16, 4), (3000, 4, 2)])
def test_values_and_gradients(tokens, num_experts, top_k, dtype, activation):
    check_against_float64(
        triton_dispatch, problem(tokens, num_experts, top_k, activation, dtype, d_model=256, d_ff=320)
    )


def test_the_same_bits_every_time():
    arguments = problem(3000, 8, 2, "swiglu", torch.bfloat16, d_model=256, d_ff=512)
    first = gradients(triton_dispatch, arguments)
    for _ in range(5):
        for again, before in zip(gradients(triton_dispatch, arguments), first, strict=True):
            assert torch.equal(again, before)


def test_every_configuration_gives_the_same_numbers():
    """The autotuner may choose any of them."""
    x, ids, weights, w_in, w_out, activation = problem(3000, 4, 2, "gelu", torch.bfloat16, d_model=256, d_ff=512)
    with recording() as launches:
        triton_dispatch(x, ids, weights, w_in, w_out, activation)
    assert max(len(launch.configs) for launch in launches) > 1
    expected = triton_dispatch(x, ids, weights, w_in, w_out, activation)
    tuned = launching._autotuned
    for choice in (0, -1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launching, "_autotuned", lambda kernel, configs, c=choice: tuned(kernel, (configs[c],)))
            out = triton_dispatch(x, ids, weights, w_in, w_out, activation)
        torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)


def test_the_cpu_does_not_wait_for_the_gpu():
    arguments = problem(1000, 8, 2, "gelu", torch.bfloat16, d_model=256, d_ff=512)
    gradients(triton_dispatch, arguments)  # compiles and tunes
    x, ids, weights, w_in, w_out, activation = arguments
    torch.cuda.set_sync_debug_mode("error")
    try:
        triton_dispatch(x, ids, weights, w_in, w_out, activation)
    finally:
        torch.cuda.set_sync_debug_mode("default")
