"""A doubt about the user's own code: that it makes a network which nobody has trained."""

from __future__ import annotations

import torch

from datafree.errors import NetworkError
from datafree.networks.instances import is_live
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import Normalized, bare
from datafree.networks.own_code import import_network
from datafree.ops import modes
from datafree.text import show


def untrained(spec: NetworkSpec, network: Normalized) -> str:
    """What to say of `network` if own code that is given no weights makes other values when it is called again.

    "" for any other. Random states are those of before.
    """
    if not spec.is_own_code or spec.weights is not None or is_live(spec.network):
        return ""
    before = modes.random_state()
    try:
        again = dict(import_network(spec.network, spec.args).named_parameters())
    except NetworkError:  # it can be made once only
        return ""
    finally:
        modes.set_random_state(before)
    made = bare(network).named_parameters()
    random = [name for name, value in made if name in again and not torch.equal(value.cpu(), again[name].cpu())]
    if not random:
        return ""
    return (
        f"each call of it makes other values ({len(random)} of {len(again)} tensors, such as {show(random[0])}), which "
        "nobody has trained: give its weights, or load them in its code"
    )
