"""The forms of the JSON files of a run directory, an export and a made data set: what each has to say."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from datafree.storage.strict_json import Form

Number = Annotated[float, Field(gt=-1e15, lt=1e15, allow_inf_nan=False)]
Whole = Annotated[int, Field(gt=-(2**53), lt=2**53)]
Size = Annotated[int, Field(ge=0, lt=2**63)]
Figures = dict[str, Number | None]


def known(figures: Figures) -> dict[str, float]:
    """The figures that are numbers."""
    return {name: value for name, value in figures.items() if value is not None}


class ChosenForm(Form):
    """The step whose student was kept."""

    step: Whole
    agreement: Number | None


class ScoresForm(Form):
    """`Scores` of a network."""

    values: Figures
    per_class: dict[str, Figures] = Field(default_factory=dict)
    remarks: list[str] = Field(default_factory=list)


class ResultForm(Form):
    """result.json."""

    chosen: ChosenForm
    faults: list[str] = Field(default_factory=list)
    scored_on: str | None = None
    relative: Figures = Field(default_factory=dict)
    scores: dict[str, ScoresForm]
    notes: list[str]
    sha256: dict[str, str] = Field(default_factory=dict)


class CostForm(Form):
    """What a run took."""

    seconds: Number | None = None
    resumed: bool = False


class NetworkForm(Form):
    """The student's section of a recipe; `NetworkSpec` checks the rest of it."""

    network: str
    args: dict[str, Any] = Field(default_factory=dict)


class TaskForm(Form):
    """A recipe's task; its class checks the rest of it."""

    kind: str


class TeacherForm(Form):
    """Whose student it is."""

    network: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    sha256: str | None = None
    sha256_of: str | None = None
    parameters: Size | None = None
    licence: str | None = None


class StudentForm(Form):
    """student.json."""

    network: NetworkForm
    task: TaskForm
    class_names: list[str] | None = None
    teacher: TeacherForm = TeacherForm()
    cost: CostForm = CostForm()
    sha256: dict[str, str] = Field(default_factory=dict)


class EnvironmentForm(Form):
    """environment.json."""

    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, str | int | None] = Field(default_factory=dict)
    began: str | None = None
    origin: dict[str, str | int | None] = Field(default_factory=dict)  # of a data set: as `engine.origin.origin_of`


class MeasuredForm(Form):
    """measured.json."""

    networks: dict[str, Figures] = Field(default_factory=dict)
    hardware: dict[str, str | int | None] = Field(default_factory=dict)
    class_agreement: list[Number | None] = Field(default_factory=list)


class OnnxForm(Form):
    """The ONNX file of an export."""

    opset: Whole | None
    relative_error: Figures


class Int8Form(Form):
    """How an export was quantised."""

    file: str = "student.int8.onnx"
    images: Whole
    origin: str
    agreement: Number | None
    compared: Whole
    qat_steps: Whole = 0


class FileForm(Form):
    """A file of an export, and what was found when it was opened again."""

    format: str
    int8: bool
    bytes: Size
    sha256: str
    error: Number | None
    agreement: Number | None
    compared: Whole
    unverified: str


class ConfigForm(Form):
    """config.json of an export, as far as it is read again."""

    sha256: dict[str, str] = Field(default_factory=dict)
    onnx: OnnxForm | None = None
    int8: Int8Form | None = None
    files: dict[str, FileForm] = Field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = Field(default_factory=dict)
    compared_on: str = ""
    missing: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)


class TimedForm(Form):
    """A network's time for one image, seconds."""

    runtime: str
    seconds: Number
    low: Number
    high: Number
    bytes: Size | None = None
    sha256: str | None = None


class BenchForm(Form):
    """bench.json."""

    threads: Whole
    rounds: Whole
    hardware: dict[str, str | int | None] = Field(default_factory=dict)
    rows: dict[str, TimedForm]
    notes: list[str] = Field(default_factory=list)


class RecordForm(Form):
    """shards/NNNNN.json of a made data set."""

    shard: Size
    images: Size
    carries: bool
    files: dict[str, str]
    entries: list[Any]


class IndexForm(Form):
    """index.json of a made data set."""

    images: Size
    shards: Size
    files: dict[str, str]
