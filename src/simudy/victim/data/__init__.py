"""Where images come from. One file per source; what they share is in images.py, pixels.py and
select.py.
"""

from simudy.victim.data.cifar10 import Cifar10
from simudy.victim.data.faces import Faces
from simudy.victim.data.folder import Folder
from simudy.victim.data.images import ImageSet, Normalisation, Source, Splits
from simudy.victim.data.npz import Npz
from simudy.victim.data.pixels import as_pixels, channels_first, resize, to_grey
from simudy.victim.data.select import Pool, balanced, split
from simudy.victim.data.sentences import Sentences
from simudy.victim.data.torch_dataset import TorchDataset

__all__ = [
    "Cifar10",
    "Faces",
    "Folder",
    "ImageSet",
    "Normalisation",
    "Npz",
    "Pool",
    "Sentences",
    "Source",
    "Splits",
    "TorchDataset",
    "as_pixels",
    "balanced",
    "channels_first",
    "resize",
    "split",
    "to_grey",
]
