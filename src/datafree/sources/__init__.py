"""Where images come from. A new method is one file here and one line in SOURCES."""

from datafree.sources.base import ImageSource
from datafree.sources.cgdd import Cgdd
from datafree.sources.degan import Degan
from datafree.sources.dfad import Dfad
from datafree.sources.folder import Folder
from datafree.sources.mixed import Mixed
from datafree.sources.noise import Noise

SOURCES: dict[str, type[ImageSource]] = {
    "cgdd": Cgdd,
    "degan": Degan,
    "dfad": Dfad,
    "folder": Folder,
    "mixed": Mixed,
    "noise": Noise,
}

__all__ = ["SOURCES", "Cgdd", "Degan", "Dfad", "Folder", "ImageSource", "Mixed", "Noise"]
