"""Mixed mini-batches of several sources: proxy and generated images together, eq. 7-9 of arXiv 2011.00809.

The paper gives alpha and beta in words only; that alpha + beta = 1 and that both shares come from the same batch is
inferred (docs/methods.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from datafree.errors import DataError
from datafree.sources.base import Batch, ImageSource, Paper, SourceContext


@final
@dataclass(kw_only=True)
class Mixed(ImageSource):
    """Batches made of its parts' images in a fixed ratio, such as alpha : beta of a folder and a generator.

    Its parts say themselves when they are updated; targets are dropped, since not every part has them.
    """

    paper: ClassVar[Paper | None] = Paper("Bhogale", "2011.00809", "eq. 7-9")
    needs_gradients: ClassVar[bool] = False  # its parts may
    forwards_updates: ClassVar[bool] = True

    parts: list[ImageSource]
    ratio: Annotated[tuple[float, ...], Doc("alpha : beta, eq. 7-9; one share a part")] = (1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.parts) != len(self.ratio) or not self.parts:
            raise DataError(
                f"mixed has {len(self.parts)} parts but a ratio of {len(self.ratio)} shares; give one share for each"
            )
        if min(self.ratio) < 0 or sum(self.ratio) <= 0:
            raise DataError(f"mixed's ratio {list(self.ratio)} must hold no negative share and one above zero")
        longest = max(part.warmup for part in self.parts)
        if self.warmup not in (0, longest) or self.update_every:
            raise DataError("mixed has no warmup or update_every of its own; set them on its parts")
        self.warmup = longest
        self._due = [0.0] * len(self.parts)  # images that each part owes, since counts are whole

    def attach(self, context: SourceContext) -> None:
        for part in self.parts:
            part.attach(context)

    def nested_sources(self) -> tuple[ImageSource, ...]:
        return tuple(self.parts)

    def due(self, step: int) -> bool:
        return any(part.due(step) for part in self.parts)

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        """The due parts' updates, and their metrics: those of the second part that has updates end in _2, and so on."""
        logs: dict[str, Tensor] = {}
        for number, part in enumerate((part for part in self.parts if part.due(-part.warmup) or part.due(0)), 1):
            if part.due(step):
                metrics = part.update(student, step)
                logs |= metrics if number == 1 else {f"{name}_{number}": value for name, value in metrics.items()}
        return logs

    def sample(self, n: int) -> Batch:
        counts, self._due = self._counts(n, self._due)
        return Batch(images=torch.cat([part.sample(count).images for part, count in self._giving(counts)]))

    def validation_images(self, n: int) -> Tensor:
        counts, _ = self._counts(n, [0.0] * len(self.parts))
        return torch.cat([part.validation_images(count) for part, count in self._giving(counts)])

    def _counts(self, n: int, due: list[float]) -> tuple[list[int], list[float]]:
        """How many of n images each part gives, and what is due then: each image is of the part that owes most.

        So each part's images are never more than one off its share, over all batches: also of batches that are too
        small for all parts.
        """
        shares, counts, due = [share / sum(self.ratio) for share in self.ratio], [0] * len(self.parts), list(due)
        for _ in range(n):
            due = [owed + share for owed, share in zip(due, shares, strict=True)]
            most = max(range(len(due)), key=due.__getitem__)
            counts[most] += 1
            due[most] -= 1
        return counts, due

    def _giving(self, counts: list[int]) -> list[tuple[ImageSource, int]]:
        return [(part, count) for part, count in zip(self.parts, counts, strict=True) if count]

    def state_dict(self) -> dict[str, Any]:
        return {"due": self._due, **{str(i): part.state_dict() for i, part in enumerate(self.parts)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._due = list(state.get("due", self._due))  # older checkpoints owe nothing
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])

    def artefacts(self) -> dict[str, nn.Module]:
        """Those of all parts; of several of one name, the second's ends in _2, and so on."""
        found: dict[str, nn.Module] = {}
        for name, network in (item for part in self.parts for item in part.artefacts().items()):
            alike = sum(other == name or other.startswith(f"{name}_") for other in found)
            found[f"{name}_{alike + 1}" if alike else name] = network
        return found

    def notes(self) -> list[str]:
        return list(dict.fromkeys(note for part in self.parts for note in part.notes()))
