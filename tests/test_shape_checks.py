"""Signatures of `moe_course.layers` are checked when tests and notebooks call them."""

import pytest
import torch
from jaxtyping import TypeCheckError

from moe_course.layers import expert_capacity, load_fraction
from moe_course.layers.stability import Float32Router


def test_a_wrong_shape_or_type_is_refused():
    with pytest.raises(TypeCheckError):
        load_fraction(torch.zeros(4), 2)
    with pytest.raises(TypeCheckError):
        expert_capacity(8, 2, 1, "1.25")


def test_a_whole_number_serves_as_a_float():
    assert expert_capacity(8, 2, 1, 1) == 4
    assert Float32Router(8, 4, 2, init_scale=1).weight.std() > 0
