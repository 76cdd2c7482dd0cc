"""Write src/datafree/builtin/architectures.json: fingerprints of all networks of torchvision and timm, by which
`datafree distill FILE` tells the architecture of a weights file.

    python scripts/index_architectures.py          # some minutes; after an update of either library

Networks are built on the meta device, without values, where they can be.
"""

from __future__ import annotations

import json
import warnings
from importlib import metadata
from pathlib import Path

import timm
import torch
import torchvision

from datafree.networks.fingerprints import MARK, Fingerprint, fingerprint
from datafree.networks.libraries import _DETECTION, build_from_library

FILE = Path(__file__).resolve().parent.parent / "src" / "datafree" / "builtin" / "architectures.json"


def names() -> list[str]:
    """All networks of both libraries that take images: video and optical flow are left out."""
    models = torchvision.models
    theirs = [*models.list_models(module=models), *models.list_models(module=models.segmentation), *_DETECTION]
    return [*(f"torchvision/{name}" for name in theirs), *(f"timm/{name}" for name in timm.list_models())]


def of(network: str) -> Fingerprint | None:
    for device in ("meta", "cpu"):  # some need values while they are built
        try:
            with torch.device(device):
                return fingerprint(build_from_library(network, {}, num_classes=MARK, channels=3))
        except Exception as error:  # of any class
            reason = type(error).__name__
    print(f"left out: {network} ({reason})", flush=True)
    return None


def main() -> None:
    warnings.simplefilter("ignore")
    found = {name: made for name in names() if (made := of(name)) is not None and made.head}
    heads = sorted({made.head for made in found.values()})
    lines = [
        f'    "{name}": {json.dumps([made.names, made.body, heads.index(made.head)])}'
        for name, made in sorted(found.items())
    ]
    made_with = {library: metadata.version(library) for library in ("timm", "torchvision")}
    parts = {
        "made_with": json.dumps(made_with),
        "heads": "[\n" + ",\n".join(f"    {json.dumps(head)}" for head in heads) + "\n  ]",
        "networks": "{\n" + ",\n".join(lines) + "\n  }",
    }
    body = ",\n".join(f'  "{name}": {text}' for name, text in parts.items())
    FILE.write_text(f"{{\n{body}\n}}\n", encoding="utf-8")
    print(f"{len(found)} networks in {FILE}")


if __name__ == "__main__":
    main()
