"""Exercises of lesson 04, the balance loss: one file each, in the lesson's order."""

from .balance_gradient import BALANCE_GRADIENT
from .balance_over_layers import BALANCE_OVER_LAYERS
from .load_balancing_loss import LOAD_BALANCING_LOSS
from .load_fraction import LOAD_FRACTION
from .mean_router_probability import MEAN_ROUTER_PROBABILITY
from .router_z_loss import ROUTER_Z_LOSS
from .watch_load import WATCH_LOAD

EXERCISES = (
    LOAD_FRACTION,
    MEAN_ROUTER_PROBABILITY,
    LOAD_BALANCING_LOSS,
    BALANCE_GRADIENT,
    BALANCE_OVER_LAYERS,
    ROUTER_Z_LOSS,
    WATCH_LOAD,
)
