"""Where images come from. A new method is one file here and one line in SOURCES."""

from datafree.sources.auto import Auto
from datafree.sources.base import ImageSource
from datafree.sources.cgdd import Cgdd
from datafree.sources.cmi import Cmi
from datafree.sources.dafl import Dafl
from datafree.sources.dataset import Dataset
from datafree.sources.degan import Degan
from datafree.sources.dfad import Dfad
from datafree.sources.diode.source import Diode
from datafree.sources.fast import Fast
from datafree.sources.folder import Folder
from datafree.sources.inversion import Inversion
from datafree.sources.mixed import Mixed
from datafree.sources.noise import Noise
from datafree.sources.procedural.source import Procedural
from datafree.sources.zskt import Zskt

SOURCES: dict[str, type[ImageSource]] = {
    "auto": Auto,
    "cgdd": Cgdd,
    "cmi": Cmi,
    "dafl": Dafl,
    "dataset": Dataset,
    "degan": Degan,
    "dfad": Dfad,
    "diode": Diode,
    "fast": Fast,
    "folder": Folder,
    "inversion": Inversion,
    "mixed": Mixed,
    "noise": Noise,
    "procedural": Procedural,
    "zskt": Zskt,
}

__all__ = [
    "SOURCES",
    "Auto",
    "Cgdd",
    "Cmi",
    "Dafl",
    "Dataset",
    "Degan",
    "Dfad",
    "Diode",
    "Fast",
    "Folder",
    "ImageSource",
    "Inversion",
    "Mixed",
    "Noise",
    "Procedural",
    "Zskt",
]
