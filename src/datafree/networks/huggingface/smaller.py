"""Smaller networks of a directory's architecture, as options of its config: fewer layers, or narrower ones.

Whether a network can be built from them is for whoever builds it to see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

_LAYERS = ("num_hidden_layers", "encoder_layers", "decoder_layers")
_SHARES = (0.75, 0.5, 0.375, 0.25, 0.125)
_HEADS = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads")
_WIDTHS = ("hidden_size", "intermediate_size", "d_model", "encoder_ffn_dim", "decoder_ffn_dim")


def smaller(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Options that differ from the config's own, from larger to smaller of each kind."""
    layers = {key: config[key] for key in _LAYERS if _is_count(config.get(key))}
    depths = config.get("depths")
    for share in _SHARES:
        yield from _changed({key: max(1, round(count * share)) for key, count in layers.items()}, config)
        if _are_counts(depths):
            yield from _changed({"depths": [max(1, round(count * share)) for count in depths]}, config)
        yield from _changed(_narrower(config, share), config)


def _narrower(config: Mapping[str, Any], share: float) -> dict[str, Any]:
    """All widths times a share; heads stay as wide as they are, where their number can be divided so."""
    made: dict[str, Any] = {}
    heads = {key: config[key] for key in _HEADS if _is_count(config.get(key))}
    fewer = {key: round(count * share) for key, count in heads.items()}
    if any(count < 1 or count != heads[key] * share for key, count in fewer.items()):
        fewer = heads  # narrower heads, then
    for key in _WIDTHS:
        if _is_count(config.get(key)):
            unit = next(iter(fewer.values()), 1)
            made[key] = max(1, round(config[key] * share / unit)) * unit
    sizes, each = config.get("hidden_sizes"), config.get("num_attention_heads")
    if _are_counts(sizes):
        units = each if _are_counts(each) and len(each) == len(sizes) else [1] * len(sizes)
        made["hidden_sizes"] = [
            max(1, round(size * share / unit)) * unit for size, unit in zip(sizes, units, strict=True)
        ]
        if _is_count(config.get("embedding_size")):
            made["embedding_size"] = max(1, round(config["embedding_size"] * share))
    return {**made, **(fewer if made else {})}


def _changed(options: dict[str, Any], config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The options that say something else than the config, if there are any."""
    left = {key: value for key, value in options.items() if value != config.get(key)}
    if left:
        yield left


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_count, value))
