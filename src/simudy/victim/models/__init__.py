"""Networks to train and attack: normalised images (n, c, h, w) -> logits (n, classes).

All take `shape`, the (c, h, w) of an image, and `classes`, how many; the rest are their own
options.
"""

from simudy.victim.models.cnn import CNN
from simudy.victim.models.layers import ACTIVATIONS, NORMS, activation_named, norm_named
from simudy.victim.models.mlp import MLP
from simudy.victim.models.resnet import ResNet
from simudy.victim.models.vit import ViT
from simudy.victim.models.writer import Writer

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "MLP",
    "NORMS",
    "ResNet",
    "ViT",
    "Writer",
    "activation_named",
    "norm_named",
]
