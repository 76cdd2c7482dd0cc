"""Passes of networks on a device that is not the CPU: what is sent in them is not waited for."""

from __future__ import annotations

import pytest
import torch

from datafree.networks.huggingface.detectors import adapt
from datafree.networks.patches import similarity_entropy
from pretended_device import pretended
from pretended_log import LOG, waited


def test_the_entropy_of_patches_does_not_wait_for_the_device() -> None:
    tokens = torch.randn(2, 7, 6)
    with pretended() as device:
        ours = tokens.to(device)
        LOG.clear()
        found = similarity_entropy(ours)
        assert waited() == []
        torch.testing.assert_close(found.cpu(), similarity_entropy(tokens))


def test_a_detector_of_transformers_does_not_wait_for_the_device_but_in_their_own_loss() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.YolosConfig(**sizes, image_size=[64, 64], patch_size=16, num_detection_tokens=10)
    detector = adapt(transformers.YolosForObjectDetection(config)).eval()
    with pretended() as device:
        detector.to(device)
        images = torch.rand(2, 3, 64, 64, device=device)
        one = torch.tensor([1]).to(device), torch.tensor([[1.0, 2.0, 30.0, 40.0]]).to(device)
        LOG.clear()
        answer = detector(images)
        assert waited() == []
        answer.loss(answer.heads, [one, one])
        assert len({wait.line for wait in LOG.waits}) == 1  # the call in which boxes are matched, on the host
