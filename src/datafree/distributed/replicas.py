"""One run on several processes: passes through shared networks are divided among them, all else is done by each alike.

Every process runs the same program from the same seed, so that all hold the same batches, banks, losses and weights at
every step. Only what costs time is divided: a pass through a network that was given to `share` computes this process's
part of the batch and collects the others' answers, with gradients. Losses, samplers and methods see whole batches, as
with one process, and need not know. What looks inside a pass (`features.watched`, `bnstats.StatisticsMatch`) asks
`collected` and `pooled` for what the whole batch gives. BatchNorm in train mode takes the whole batch's statistics.

torchrun says who there is; without it there is one process, and everything here costs one comparison.

B images of a batch, P processes, K channels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from types import MethodType
from typing import Any, TypeVar, cast
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn

from datafree.distributed import collectives
from datafree.distributed.whole_batchnorm import TrainedBatchNorm, of_equal_parts
from datafree.errors import DatafreeError
from datafree.ops import modes, whole_batch
from datafree.ops.predictions import map_answer
from datafree.ops.upload import uploaded
from datafree.text import one_line

NetworkT = TypeVar("NetworkT", bound=nn.Module)
ResultT = TypeVar("ResultT")

PATIENCE = timedelta(minutes=30)  # that a process waits for the others; longer than the first one plans or writes
LAST_WORDS = 8.0  # seconds for another process to say why it ends; longer than it leaves the first to speak
_LOST = ("closed by peer", "connection reset", "timed out", "timeout", "broken pipe", "connection was")  # a peer's end

_passes: list[list[int]] = []  # of the shared pass under way: images of each part; none where parts stay by themselves
_endings: list[Callable[[], None]] = []  # what is to be done when it ends
_alone: list[bool] = []  # not empty: this process works as if there were no others
_shared: WeakSet[nn.Module] = WeakSet()  # networks that were given to `share`
listeners: list[Callable[[Tensor, bool], None]] = []  # told what is looked at inside a pass, and whether it has a batch


def count() -> int:
    """P."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


def rank() -> int:
    """This process's number, 0 to P - 1."""
    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    return rank() == 0


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Within it, this process works together with those that torchrun started beside it; yields its own device's name.

    "auto" and "cuda" become the GPU of its number on this machine. Raises DatafreeError if it has none, or cannot reach
    the others.
    """
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted == 1 or dist.is_initialized():
        yield device
        return
    mine = modes.choose_device(device)
    with ExitStack() as held:
        try:
            held.enter_context(collectives.process_group(collectives.backend_for(mine), timeout=PATIENCE))
        except (RuntimeError, ValueError) as error:
            which = f"process {os.environ.get('RANK')} of {wanted}"
            raise DatafreeError(
                f"{which} cannot reach the others ({one_line(error)}); start all of them by torchrun"
            ) from error
        try:
            with collectives.over_lines(PATIENCE):
                yield str(mine)
        except RuntimeError as error:
            if not any(text in str(error).lower() for text in _LOST):
                raise
            time.sleep(LAST_WORDS)
            raise DatafreeError(
                f"process {dist.get_rank()} of {wanted} has lost the others, or waited for one longer than {PATIENCE} "
                f"({one_line(error)}); see what that one says, and run the same command again to resume"
            ) from error


def all_agree(reason: str | None) -> str | None:
    """The first process's reason that has one, the same for all; for decisions that only some of them come to."""
    if count() == 1:
        return reason
    only_gpus = dist.get_backend() == "nccl"  # a group that the user has made
    device = torch.device("cuda", torch.cuda.current_device()) if only_gpus else None
    anyone = torch.tensor(0 if reason is None else 1, device=device)
    collectives.add_up(anyone)
    if not anyone:  # nearly always: asked at every step, so it should cost little
        return None
    reasons: list[str | None] = [None] * count()
    dist.all_gather_object(reasons, reason)
    return next((one for one in reasons if one is not None), None)


def broadcast_from_rank0(act: Callable[[], ResultT]) -> ResultT:
    """What the first process comes to, told to all; the others do nothing. Raises its DatafreeError on all of them."""
    if count() == 1:
        return act()
    heard: list[Any] = [None, None]
    if is_first():
        try:
            heard[0] = act()
        except DatafreeError as error:
            heard[1] = error
    dist.broadcast_object_list(heard, src=0)
    if heard[1] is not None:
        raise heard[1]
    return cast("ResultT", heard[0])


@contextmanager
def single_process() -> Iterator[None]:
    """Within it, this process works as if there were no others: for what `broadcast_from_rank0` has rank 0 try."""
    _alone.append(True)
    try:
        yield
    finally:
        _alone.pop()


def share(network: NetworkT) -> NetworkT:
    """Divide this network's passes among the processes from now on; returns it. Nothing happens with one process.

    While batches are shared out (`distributed.divided`) each process passes its own; BatchNorm in train mode takes the
    statistics of all of them.

    Its arguments are tensors with the batch first, its answer a tensor of that kind or `Predictions`. A batch of fewer
    than P images is computed whole by each. Random numbers drawn inside a pass (dropout) are the same for every part.
    """
    _shared.add(network)
    if count() > 1 and not isinstance(network.__dict__.get("forward"), MethodType):
        network.forward = MethodType(_shared_forward, network)  # a method of its own: copies of the network have theirs
    return network


def is_shared(network: nn.Module) -> bool:
    """Whether its passes are divided where there are several processes."""
    return network in _shared


def at_end(act: Callable[[], None]) -> None:
    """Inside a shared pass: do this when it ends, while `collected` still works; else nothing."""
    if _passes:
        _endings.append(act)
    elif listeners:
        act()


def _collects() -> bool:
    """Whether a shared pass is under way whose parts are brought together."""
    return bool(_passes and _passes[-1])


def images(part: int) -> int:
    """How many images the whole batch has, inside a shared pass; else `part`, those that are here."""
    return sum(_passes[-1]) if _collects() else part


def collected(part: Tensor) -> Tensor:
    """The whole batch's tensor (B, ...) of this process's part, inside a shared pass; else the tensor itself."""
    for tell in listeners:
        tell(part, True)
    return cast("Tensor", collectives.Collect.apply(part, _passes[-1])) if _collects() else part


def pooled(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) mean and biased variance of the whole batch, inside a shared pass, from those of this process's part."""
    for tell in listeners:
        tell(torch.stack([mean, var]), False)
    if not _collects():
        return mean, var
    sizes = uploaded(_passes[-1], mean.device, mean.dtype)
    shares = (sizes / sizes.sum())[:, None, None]  # every image has as many values
    parts = cast("Tensor", collectives.Collect.apply(torch.stack([mean, var])[None], [1] * count()))  # (P, 2, K)
    whole = (shares * parts).sum(0)
    between = (shares[:, 0] * (parts[:, 0] - whole[0]).square()).sum(0)
    return whole[0], whole[1] + between


def _shared_forward(network: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    forward: Callable[..., Any] = type(network).forward
    batch = len(inputs[0])
    if _passes or count() == 1:
        return forward(network, *inputs, **options)
    if whole_batch.parts() > 1:
        return _own_pass(network, *inputs, **options)
    if batch < count():
        return forward(network, *inputs, **options)
    sizes = [len(part) for part in torch.arange(batch).tensor_split(count())]
    places = {torch.device("cpu"), inputs[0].device}  # where a pass may draw
    before = {place: modes.generator_state(place) for place in places}
    mine = [cast("Tensor", collectives.Part.apply(whole, sizes)) for whole in inputs]
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    _passes.append(sizes)
    try:
        with TrainedBatchNorm(_batch_norm):
            if names and torch.is_grad_enabled():
                held = dict(network.named_parameters())
                summed = dict(zip(names, collectives.Summed.apply(*(held[name] for name in names)), strict=True))
                answer = torch.func.functional_call(network, summed, tuple(mine), options)
            else:
                answer = forward(network, *mine, **options)
        for place, state in before.items():
            if not torch.equal(state, modes.generator_state(place)):  # parts of unequal size draw unequally often
                modes.set_generator_state(place, state)
                torch.rand((), device=place)
        for act in _endings:
            act()
        return map_answer(answer, collected)
    finally:
        _passes.pop()
        _endings.clear()


def _own_pass(network: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    """This process's own images, whose answers stay here."""
    forward: Callable[..., Any] = type(network).forward
    _passes.append([])
    try:
        with of_equal_parts(len(inputs[0])) if network.training else nullcontext():
            answer = forward(network, *inputs, **options)
        for act in _endings:
            act()
        return answer
    finally:
        _passes.pop()
        _endings.clear()


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` of the whole batch for this process's part (b, K, ...), running statistics and all."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    dims = [0, *range(2, x.ndim)]
    values = x.numel() // x.shape[1] // len(x) * sum(_passes[-1])  # of a channel, in the whole batch
    mean = cast("Tensor", collectives.Total.apply(wide.sum(dims))) / values
    view = [1, -1, *[1] * (x.ndim - 2)]
    centred = wide - mean.view(view)
    var = cast("Tensor", collectives.Total.apply(centred.square().sum(dims))) / values
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (values / max(values - 1, 1))).to(running_var.dtype), momentum)
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    normed = centred * scale.view(view)
    return (normed if bias is None else normed + bias.view(view)).to(x.dtype)
