"""The ATen operators that a .pt2 file may call. Nothing else is.

None of them reads or writes anything but its arguments. An operator that is missing here is refused by its name.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch

# The numbers that the format has for types and for memory formats.
TYPES = {
    **dict(enumerate((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64), 1)),
    **dict(enumerate((torch.float16, torch.float32, torch.float64), 6)),
    12: torch.bool,
    13: torch.bfloat16,
}
FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}

_ATEN = frozenset(
    re.findall(
        r"\w+",
        """
        _adaptive_avg_pool2d _log_softmax _native_batch_norm_legit_no_training _safe_softmax _softmax _to_copy
        _unsafe_view abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d add add_ addcmul addmm alias
        amax amin arange argmax avg_pool1d avg_pool2d baddbmm batch_norm bitwise_and bitwise_not bitwise_or bmm
        cat channel_shuffle chunk clamp clamp_ clamp_max clamp_min clone constant_pad_nd contiguous conv1d conv2d
        conv_transpose2d convolution copy cos cumsum detach detach_ div div_ dropout dropout_ einsum elu elu_
        embedding empty empty_like eq erf exp expand expand_as feature_dropout feature_dropout_ fill fill_ flatten
        flip floor fmod full full_like gather ge gelu gelu_ glu grid_sampler_2d group_norm gt hardsigmoid hardsigmoid_
        hardswish hardswish_ hardtanh hardtanh_ index index_select instance_norm layer_norm le leaky_relu
        leaky_relu_ lift_fresh_copy linalg_vector_norm linear log log1p log_softmax logical_and logical_not
        logical_or lt masked_fill matmul max max_pool2d max_pool2d_with_indices maximum mean meshgrid min minimum
        mish mish_ mm mul mul_ narrow native_group_norm native_layer_norm ne neg new_full new_ones new_zeros norm
        ones ones_like pad permute pixel_shuffle pixel_unshuffle pow prelu reciprocal reflection_pad2d relu relu6
        relu6_ relu_ remainder repeat replication_pad2d reshape reshape_as roll rsqrt rsub scalar_tensor
        scaled_dot_product_attention select selu sigmoid sigmoid_ sign silu silu_ sin slice softmax softplus split
        split_with_sizes sqrt square squeeze stack std sub sub_ sum swapaxes sym_size t tanh tanh_ tensor_split
        tile to transpose tril triu true_divide type_as unbind unflatten unsqueeze unsqueeze_ upsample_bicubic2d
        upsample_bilinear2d upsample_nearest2d upsample_nearest_exact2d var var_mean view view_as where zero_
        zeros zeros_like
        """,
    )
)
_NUMBERS: dict[str, Callable[..., Any]] = {  # on whole numbers: sizes
    "_operator.add": operator.add,
    "_operator.floordiv": operator.floordiv,
    "_operator.mod": operator.mod,
    "_operator.mul": operator.mul,
    "_operator.neg": operator.neg,
    "_operator.sub": operator.sub,
}

# What only looks whether sizes and types are those of the export.
_CHECKS = re.compile(r"torch\.ops\.aten\.(_assert\w+|sym_constrain_range\w*)\.\w+|_operator\.(eq|ge|gt|le|lt|ne)")


def only_checks(target: object) -> bool:
    """Whether a step only looks whether sizes and types are those of the export, and makes nothing."""
    return isinstance(target, str) and _CHECKS.fullmatch(target) is not None


def call_named(target: object) -> Callable[..., Any]:
    """The function that a step calls by this name. Raises LookupError, saying why there is none."""
    if isinstance(target, str) and target in _NUMBERS:
        return _NUMBERS[target]
    match = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target, re.ASCII) if isinstance(target, str) else None
    if match is None or match[1] not in _ATEN:
        raise LookupError(
            "which is none of the operators that are run from a file; if it was exported with run_decompositions(), "
            "export it without"
        )
    try:
        call: Callable[..., Any] = getattr(getattr(torch.ops.aten, match[1]), match[2])
    except AttributeError:
        raise LookupError("which this torch does not have") from None
    return call
