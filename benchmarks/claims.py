"""What the three papers claim, as plain data: which rows of which table decide it, and the papers' own figures.

DeGAN for segmentation: arXiv 2011.00809, Tables 1 and 2, Figure 6 (its ratios are not known). DIODE: WACV 2021, whose
tables could not be read; its abstract and method. CGDD: arXiv 2112.15358, of which the abstracts alone could be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Claim:
    """A row above or below another, or a row's own figure beside the published one."""

    text: str
    source: str  # where the paper says so
    published: tuple[float, ...] = ()  # percent: of `row` and of `than`; empty where no figure is known
    tables: tuple[str, ...]  # BENCHMARK-SIZE, the cheapest first; empty: there is no such row here
    metric: str
    row: str = ""
    than: str | None = None  # None: the row's own figure is compared with the published one
    less: bool = False  # the row is claimed to be below the other


CAMVID = ("camvid-cpu", "camvid-long")


def street(text: str, source: str, row: str, than: str, *published: float, metric: str = "miou") -> Claim:
    """A claim of DeGAN's paper; the sign of its own difference is what is claimed."""
    less = bool(published) and published[0] < published[1]
    return Claim(
        text=text, source=source, published=published, tables=CAMVID, metric=metric, row=row, than=than, less=less
    )


DEGAN = [
    street(
        "weighted diversity and mixed data are better than DeGAN",
        "abstract, Table 1",
        *("degan_weighted_mixed", "degan"),
        *(30.52, 23.59),
    ),
    street("both are better than proxy photos alone", "Table 1", "degan_weighted_mixed", "kd_proxy", 30.52, 29.43),
    street(
        "both are better than proxy photos alone, in pixel accuracy",
        "Table 1",
        *("degan_weighted_mixed", "kd_proxy"),
        *(75.02, 70.52),
        metric="pixel_accuracy",
    ),
    street("weighted diversity alone is better than DeGAN", "Table 1", "degan_weighted", "degan", 25.95, 23.59),
    street("mixed data alone is better than DeGAN", "Table 1", "degan_mixed", "degan", 28.48, 23.59),
    street(
        "mixing the photos in helps beside weighted diversity",
        "Table 1",
        *("degan_weighted_mixed", "degan_weighted"),
        *(30.52, 25.95),
    ),
    street(
        "weighted diversity helps beside mixed data", "Table 1", "degan_weighted_mixed", "degan_mixed", 30.52, 28.48
    ),
    street("DeGAN (entropy term) is better than a DCGAN", "Table 1", "degan", "dcgan", 23.59, 22.74),
    street(
        "weighted diversity is better than plain, weights 0 and 10",
        "Table 2",
        *("degan_weighted", "table2/plain_e0_d10"),
        *(25.95, 21.72),
    ),
    street(
        "weighted diversity is better than plain, weights 5 and 10",
        "Table 2",
        *("table2/weighted_e5_d10", "table2/plain_e5_d10"),
        *(25.54, 23.04),
    ),
    street(
        "weighted diversity is worse than plain, weights 10 and 10",
        "Table 2",
        *("table2/weighted_e10_d10", "table2/plain_e10_d10"),
        *(18.11, 20.41),
    ),
    street("plain diversity alone is worse than a DCGAN", "Table 2", "table2/plain_e0_d10", "dcgan", 21.72, 22.74),
    street(
        "generated images alone are worse than proxy photos alone",
        "Figure 6, Table 1",
        *("degan_weighted", "kd_proxy"),
        *(25.95, 29.43),
    ),
    Claim(
        text="mixing photos with a DCGAN's images is not better than the photos",
        source="Figure 6",
        tables=CAMVID,
        metric="miou",
        row="ratio/dcgan_1_1",
        than="kd_proxy",
        less=True,
    ),
    street(
        "the true photos' answers teach more than their labels", "Table 1", "kd_true", "student_labels", 49.97, 49.16
    ),
]


def cells_of_blood(text: str, source: str, row: str, than: str) -> Claim:
    """A claim of DIODE, on blood cells."""
    return Claim(
        text=text, source=source, tables=("detection-cpu",), metric="ap50", row=f"bccd/{row}", than=f"bccd/{than}"
    )


DIODE = [
    cells_of_blood("its images teach more than unrelated photos", "abstract", "onebox_fp", "kd_proxy"),
    Claim(
        text="the same, on COCO",
        source="abstract",
        tables=("detection-cpu",),
        metric="ap50",
        row="coco/onebox_fp",
        than="coco/kd_proxy",
    ),
    cells_of_blood("they teach a student from scratch: more than noise", "abstract", "onebox_fp", "noise"),
    cells_of_blood("augmentations help", "abstract", "onebox_fp", "no_augment"),
    cells_of_blood("false-positive sampling helps", "abstract, method", "onebox_fp", "onebox"),
    cells_of_blood("tiles help", "method", "onebox_tiles", "onebox_fp"),
    cells_of_blood("matching BatchNorm statistics helps", "abstract, method", "onebox_fp", "no_bn"),
    cells_of_blood("total variation helps", "method", "onebox_fp", "no_tv"),
]


def conditional(text: str, source: str, tables: str, row: str, than: str) -> Claim:
    """A claim of CGDD, by accuracy relative to the teacher's; `tables`: separated by spaces."""
    return Claim(text=text, source=source, tables=tuple(tables.split()), metric="relative", row=row, than=than)


FASHION = "fashion-mnist/"
CGDD = [
    Claim(
        text="share of the teacher's accuracy, CIFAR-10",
        source="abstract, v1",
        published=(99.63,),
        tables=("classification-cifar",),
        metric="relative",
        row="cifar10/cgdd",
    ),
    Claim(text="the same, CIFAR-100", source="abstract, v1", published=(99.07,), tables=(), metric="relative"),
    Claim(text="the same, Caltech-101", source="abstract, v1", published=(99.84,), tables=(), metric="relative"),
    Claim(
        text="the same, beside its lowest figure: Fashion-MNIST, not the paper's data",
        source="abstract, v1",
        published=(99.07,),
        tables=("classification-cpu", "classification-long"),
        metric="relative",
        row=f"{FASHION}cgdd",
    ),
    conditional(
        "better than other methods: Fast-DFKD (a later one), CIFAR-10",
        "abstract, v4",
        "classification-cifar",
        *("cifar10/cgdd", "cifar10/fast"),
    ),
    conditional(
        "the same, Fashion-MNIST",
        "abstract, v4",
        "classification-cpu classification-long",
        *(f"{FASHION}cgdd", f"{FASHION}fast"),
    ),
    *(
        conditional(
            f"the same: {name}, Fashion-MNIST", "abstract, v4", "classification-cpu", f"{FASHION}cgdd", FASHION + row
        )
        for name, row in (("CMI", "cmi"), ("DAFL", "dafl"), ("DeepInversion", "inversion"), ("ZSKT", "zskt"))
    ),
    *(
        conditional(text, source, "classification-cpu", f"{FASHION}cgdd", FASHION + row)
        for text, source, row in (
            ("preset labels as ground truth of the generator help", "abstracts", "cgdd_no_target"),
            ("preset labels as ground truth of the student help", "abstract, v1", "cgdd_no_labels"),
            ("attention maps help", "abstract, v1", "cgdd_no_attention"),
            ("adversarial training helps", "abstract, v4", "cgdd_no_adversarial"),
        )
    ),
]

PAPERS = {"degan": DEGAN, "diode": DIODE, "cgdd": CGDD}
CLAIMS = [claim for claims in PAPERS.values() for claim in claims]
