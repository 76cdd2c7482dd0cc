"""DAFL: a generator whose images the teacher takes for its training data. It never looks at the student.

Hanting Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, arXiv 1904.01186; settings of its public CIFAR
script. The student of the paper learns by KL at temperature 1 (task.temperature=1), SGD at 0.1, batches of 1,024.

Ours: the student learns on images made anew, not on those of the generator's step; images are kept in [0, 1] by a
sigmoid, where the public generator ends in a BatchNorm. B images, C classes, N rows (an image or a pixel each).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from torch import Tensor, nn
from typing_extensions import Doc

from datafree.config.options import Count, Positive, PositiveInt, Weight
from datafree.networks import features
from datafree.networks.generators import ResizeGenerator
from datafree.networks.normalized import bare
from datafree.ops import losses
from datafree.sources.base import Paper, SourceContext
from datafree.sources.parts.generator_source import GeneratorSource
from datafree.tasks.base import synthetic_batch


@final
@dataclass(kw_only=True)
class Dafl(GeneratorSource):
    """The generator makes images of which the teacher is sure, of every class alike, with strong activations.

    One update is one generator step; the published rhythm is one to each step of the student. The defaults are those of
    CIFAR-10; CIFAR-100 has one_hot_weight 0.5, balance_weight 20, activation_weight 0.1. The teacher's BatchNorm is not
    used, nor need it have any.
    """

    paper: ClassVar[Paper | None] = Paper("Chen et al.", "1904.01186")
    passes: ClassVar[Mapping[str, int]] = {"generator": 1, "teacher": 1}

    one_hot_weight: Annotated[Weight, Doc("of the teacher's loss on the answer it gives itself: sure answers")] = 0.05
    balance_weight: Annotated[Weight, Doc("of the average answer's negative entropy, in powers of ten (log10)")] = 5.0
    activation_weight: Annotated[Weight, Doc("of the teacher's deepest activations, to be large")] = 0.01
    latent: Annotated[PositiveInt, Doc("Z")] = 1000
    width: Annotated[PositiveInt, Doc("channels of the generator at full size")] = 64
    batch_size: Annotated[PositiveInt, Doc("images per generator step")] = 1024
    lr: Annotated[Positive, Doc("Adam's, the same in the whole run")] = 0.02
    restarts: Annotated[Count, Doc("at most; each halves the rate")] = 3
    update_every: Annotated[Count, Doc("student steps per generator step")] = 1

    def attach(self, context: SourceContext) -> None:
        self.attach_generator(context, ResizeGenerator(context.task.image_size, self.latent, self.width))
        # f_T, the features before the classifier: pooled or not, a ReLU's map has the same mean.
        look = synthetic_batch(context.task.image_size, context.device)
        self._deepest = list(features.last_layers(context.teacher, look).values())[-1:]
        if self.activation_weight and not self._deepest:
            context.say("note: the teacher has no feature maps; source.activation_weight is off")

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        task, teacher = self._context.task, self._context.teacher
        images = self._trainer.make(self._trainer.draw(self.batch_size))
        with features.watched(bare(teacher), self._deepest) as maps:
            outputs = teacher(images)
        terms = {
            "one_hot": task.target_loss(outputs, task.pseudo_targets(outputs)),
            "class_information": losses.class_information_loss(task.class_probs(outputs)),
        }
        loss = self.one_hot_weight * terms["one_hot"] + self.balance_weight * terms["class_information"]
        if self._deepest:
            terms["activation"] = losses.activation_loss(maps[self._deepest[0]])
            loss = loss + self.activation_weight * terms["activation"]
        self._trainer.step(loss, self.lr * self._trainer.guard.caution)
        logs = {name: value.detach() for name, value in terms.items()}
        return logs | self._trainer.guard.after(step, task, images, outputs)
