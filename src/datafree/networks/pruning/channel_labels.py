"""Which variables the tensors of a forward pass carry: labels by a tensor's place in memory, roles of parameters.

Tensors are known by the place of their memory, so that views and changes in place need no book-keeping.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from datafree.networks.pruning.channels import Channels, Place, compact, place


@dataclass(kw_only=True)
class Followed:
    """A network's tensors as labels of their shapes: of each, its variables as `inputs` and as `outputs`.

    A convolution's weight (O, I, h, w) has variables of its inputs along axis 1 and of its outputs along axis 0; any
    other tensor, such as BatchNorm's gain, has `outputs` alone.
    """

    channels: Channels
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)  # weight -> gain of the BatchNorm that alone takes its answer
    lost: list[str] = field(default_factory=list)  # operations behind which channels are not known


class ChannelLabels:
    """The labels of the tensors of one forward pass, and the roles of a network's parameters in it."""

    def __init__(self, network: nn.Module) -> None:
        self.channels = Channels()
        self.producers: dict[Place, str] = {}  # a layer's output -> the name of the layer's weight
        self.norms: dict[str, tuple[str, Place]] = {}  # weight -> gain of a BatchNorm, and the output that it takes
        self.takers = Counter[Place]()  # how many operations take a tensor
        self.lost: list[str] = []
        self._labels: dict[Place, Tensor] = {}
        self._roles: dict[tuple[str, str], Tensor] = {}  # (tensor's name, inputs or outputs) -> labels of its shape
        self._flat: dict[tuple[int, str], Tensor] = {}  # the same of a whole storage, for views of parts of it
        named = [*network.named_parameters(), *network.named_buffers()]
        self.named = {name: tensor for name, tensor in named if tensor.numel() and tensor.is_floating_point()}
        self._by_place = {place(tensor): name for name, tensor in self.named.items()}
        self._storages = {tensor.untyped_storage().data_ptr() for tensor in self.named.values()}

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether it is a tensor of the network's own, or a view of one."""
        return tensor.untyped_storage().data_ptr() in self._storages

    def name(self, tensor: Tensor) -> str | None:
        """Of a tensor of the network's own; None for a view of a part, and for any other."""
        return self._by_place.get(place(tensor))

    def labels(self, tensor: Tensor) -> Tensor | None:
        """Labels of its shape; those of a parameter that is taken entry by entry are made when first asked for."""
        if tensor.numel() < 2 or not tensor.is_floating_point():
            return None
        known = self._labels.get(place(tensor))
        if known is not None or not self.is_parameter(tensor):
            return known
        name = self.name(tensor)
        if name is not None:
            if (name, "outputs") not in self._roles:
                self._roles[name, "outputs"] = self.channels.fresh(tensor.numel()).view(tensor.shape)
            return self._roles[name, "outputs"]
        storage = tensor.untyped_storage()
        flat = self._flat.get((storage.data_ptr(), "outputs"))
        if flat is None:
            flat = self.channels.fresh(storage.nbytes() // tensor.element_size())
            self._flat[storage.data_ptr(), "outputs"] = flat
        return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def label(self, tensor: Tensor, labels: Tensor | None) -> None:
        """Say what `tensor` carries; None: nothing that is known."""
        if labels is None:
            self._labels.pop(place(tensor), None)
        elif tensor.numel():
            self._labels[place(tensor)] = compact(labels)

    def role(self, tensor: Tensor | None, role: str, labels: Tensor) -> None:
        """Say what a parameter carries, as "inputs" or "outputs"; a second use makes both the same variables."""
        if tensor is None or not self.is_parameter(tensor):
            return
        name = self.name(tensor)
        if name is not None:
            known = self._roles.setdefault((name, role), labels.expand(tensor.shape))
            self.channels.unite(known, labels)
            return
        storage = tensor.untyped_storage()
        key = (storage.data_ptr(), role)
        if key not in self._flat:
            self._flat[key] = torch.full((storage.nbytes() // tensor.element_size(),), -1)
        part = self._flat[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        self.channels.unite(part, labels)
        part.copy_(torch.where(part < 0, labels.expand(tensor.shape), part))

    def result(self) -> Followed:
        # A BatchNorm can make up for what is written into the layer before it only where it alone takes that answer.
        alone = {weight: gain for weight, (gain, taken) in self.norms.items() if self.takers[taken] == 1}
        followed = Followed(channels=self.channels, norms=alone, lost=self.lost)
        for name, tensor in self.named.items():
            for role, into in (("inputs", followed.inputs), ("outputs", followed.outputs)):
                labels = self._roles.get((name, role))
                flat = self._flat.get((tensor.untyped_storage().data_ptr(), role))
                if flat is not None:
                    part = flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
                    if labels is not None:
                        self.channels.unite(labels, part)
                    labels = part if labels is None else labels
                if labels is not None:
                    into[name] = labels
        for into in (followed.inputs, followed.outputs):  # once all unions are known
            for name, labels in into.items():
                into[name] = compact(self.channels.find(labels))
        return followed
