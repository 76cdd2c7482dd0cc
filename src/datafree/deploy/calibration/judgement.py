"""What has to be said of calibration images and of INT8 by them: a line for each doubt, with its figure."""

from __future__ import annotations

import math

from datafree.deploy.calibration import layers
from datafree.deploy.calibration.measures import AGREES, INT8, Measured
from datafree.text import percent

BETTER = 0.02  # of the images, by which noise has to agree more
FEW = 0.5  # of the BatchNorm layers: with fewer of them within the limits the images are doubtful
SURE = 0.95  # confidence in a share of agreement
OF_EACH_COMPARED = 4  # images made, for one that is held out
_ON = {"made": "held-out images of the source", "real": "real images"}


def judge(measured: Measured) -> list[str]:
    """Warnings, the worst first."""
    return [*_of_int8(measured), *_of_noise(measured), *_of_layers(measured)]


def _of_int8(measured: Measured) -> list[str]:
    found = []
    for on, by in measured.agreement.items():
        if on == "made" and by["made"] is not None and "real" in measured.agreement:
            continue  # real images say more
        share = by["made"]
        if share is None:
            found.append(
                f"neither {INT8} nor the float network finds anything in the {_ON[on]}: nothing is known of how they "
                "agree; give --data DIR with real images"
            )
        elif share < AGREES[on]:
            found.append(
                f"{INT8} agrees with the float network on {percent(share)} of {_ON[on]}, less than "
                f"{percent(AGREES[on])}: do not ship it without scoring it on labelled images; the float file is safe"
            )
        elif (count := measured.compared.get(on)) is not None and count < enough(AGREES[on]):
            sure = percent((1 - SURE) ** (1 / count))
            least = f"--images {OF_EACH_COMPARED * enough(AGREES[on])} or more"
            way = "more images in --data" if on == "real" else least
            found.append(
                f"{INT8} was compared with the float network on {count} {_ON[on]}, too few to tell: one that agrees on "
                f"all of so many may agree on {sure} of others; give {way}"
            )
    return found


def enough(share: float) -> int:
    """Images that have to agree, all of them, to show with confidence SURE that more than `share` of all would.

    Clopper and Pearson's bound where every trial succeeds: share ** n = 1 - SURE.
    """
    return math.ceil(math.log(1 - SURE) / math.log(share))


def _of_noise(measured: Measured) -> list[str]:
    by = measured.agreement.get("real") or measured.agreement.get("made") or {}
    ours, noise = by.get("made"), by.get("noise")
    if ours is None or noise is None or noise <= ours + BETTER:
        return []
    return [f"noise calibrates better than these images ({percent(noise)} against {percent(ours)} agreement)"]


def _of_layers(measured: Measured) -> list[str]:
    share, row = measured.within.get("made"), layers.worst(measured.rows)
    if share is None or share >= FEW or row is None:
        return []
    return [
        f"in {percent(share)} of the BatchNorm layers these images look like the training data's statistics, fewer "
        f"than {percent(FEW)}; farthest is {row['layer']} (mean off by {row['made']['mean']:.2g} standard deviations, "
        f"spread {row['made']['spread']:.2g} times): give --time more, or --photos DIR"
    ]
