"""Pretrained weights of torchvision, timm and smp: how a recipe asks for them, one line where there is no network.

Nothing is fetched here, that is the libraries' work; but they try for a minute, or for ever, where no network answers.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import typing
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from datafree.errors import NetworkError
from datafree.text import one_line, show

# Arguments by which a library loads weights of its own, perhaps from the network.
PRETRAINED = ("pretrained", "weights", "weights_backbone", "encoder_weights")
_OWN = {"torchvision": "weights", "smp": "encoder_weights"}  # what `pretrained: true` is called there
_LIMIT = 10.0  # seconds that a place has to answer


def asks_for_weights(args: Mapping[str, Any]) -> bool:
    """Whether a network's arguments ask its library for weights."""
    return any(args.get(name) for name in PRETRAINED)


def asks_for_all_weights(library: str, args: Mapping[str, Any]) -> bool:
    """Whether they ask for those of the whole network, not of its encoder or backbone alone."""
    return library != "smp" and any(args.get(name) for name in ("pretrained", "weights"))


def in_its_own_words(library: str, network: str, args: dict[str, Any]) -> dict[str, Any]:
    """`args` with `pretrained: true` as the library calls it. Raises NetworkError where it offers no weights."""
    if "pretrained" not in args or library == "timm":
        return args
    wanted, rest = args["pretrained"], {key: value for key, value in args.items() if key != "pretrained"}
    if not isinstance(wanted, bool):
        raise NetworkError(f"{network}: pretrained is {show(wanted)}; write true or false")
    if not wanted:
        return rest
    if library not in _OWN:
        raise NetworkError(f"{network} is ours and comes without weights: leave pretrained out, and give `weights`")
    own = _OWN[library]
    if own in rest:
        raise NetworkError(f"{network} is given pretrained and {own}, which mean the same: leave one out")
    return {**rest, own: "DEFAULT" if library == "torchvision" else _encoder_weights(rest)}


def _encoder_weights(args: Mapping[str, Any]) -> Any:
    """smp's name of the weights it offers for an encoder: ImageNet's, where there are several."""
    import segmentation_models_pytorch as smp

    encoder = str(args.get("encoder_name", args.get("encoder", "resnet34")))
    if encoder.startswith("tu-"):  # timm's
        return True
    offered = smp.encoders.encoders.get(encoder, {}).get("pretrained_settings", {})
    return "imagenet" if "imagenet" in offered or not offered else next(iter(offered))


@contextlib.contextmanager
def within_reach(library: str, name: str, args: Mapping[str, Any]) -> Iterator[None]:
    """Within it a library may fetch the weights that `args` ask for; if their place is out of reach, it does not try.

    What was fetched before and is kept on this machine is used without a network. Raises NetworkError, within seconds,
    where the weights are neither here nor within reach.
    """
    place = _place(library, name, args) if asks_for_weights(args) else None
    if place is None:
        yield
        return
    reason = "HF_HUB_OFFLINE is set" if _hub_is_off(library) else _silent(place)
    if reason is None:
        yield
        return
    refusal = NetworkError(
        f"the weights offered for {library}/{name} are not on this machine, and {urlsplit(place).hostname} is "
        f"out of reach ({reason}): fetch them elsewhere and give the file as `weights`, with pretrained left out"
    )
    if library == "torchvision":  # what is kept was looked for
        raise refusal
    try:
        with hub_offline():
            yield
    except Exception as error:
        raise refusal from error


def _place(library: str, name: str, args: Mapping[str, Any]) -> str | None:
    """The address that weights come from; None where nothing is to be fetched, or nothing said here can help."""
    import huggingface_hub.constants

    if library == "torchvision":
        return _torchvision_place(name, args)
    if library == "timm":
        import timm

        config = timm.get_pretrained_cfg(name)
        if config is None or not config.has_weights:
            return None
        return huggingface_hub.constants.ENDPOINT if config.hf_hub_id else str(config.url or "") or None
    return huggingface_hub.constants.ENDPOINT if library == "smp" else None


def _torchvision_place(name: str, args: Mapping[str, Any]) -> str | None:
    import torchvision

    try:
        parameters = inspect.signature(torchvision.models.get_model_builder(name)).parameters
        for key in ("weights", "weights_backbone"):
            kinds = typing.get_args(parameters[key].annotation) if args.get(key) else ()
            for weights in (kind.verify(args[key]) for kind in kinds if hasattr(kind, "verify")):
                kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(weights.url).path).name
                if not kept.exists():
                    return str(weights.url)
    except (KeyError, TypeError, ValueError):  # no such network, option or weights: to be said by torchvision
        pass
    return None


def _silent(address: str) -> str | None:
    """Why nothing answers at an address; None where something does, whatever it says. Takes seconds at most."""
    reasons: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_LIMIT):
                reasons.append(None)
        except urllib.error.HTTPError:
            reasons.append(None)
        except Exception as error:  # of the resolver, of sockets, of TLS, of a proxy
            reasons.append(one_line(getattr(error, "reason", None) or error))

    # Looking up a name knows no time limit, hence the thread.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_LIMIT)
    return reasons[0] if reasons else f"no answer in {_LIMIT:.0f} s"


def _hub_is_off(library: str) -> bool:
    import huggingface_hub.constants

    return library != "torchvision" and bool(huggingface_hub.constants.HF_HUB_OFFLINE)


@contextlib.contextmanager
def hub_offline() -> Iterator[None]:
    """Within it the hub's client looks at what it has kept, and nowhere else."""
    import huggingface_hub.constants

    constants: Any = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
