"""Images as a person sees them: bytes, and addresses that hold a picture themselves."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


def as_bytes(pixels: Tensor) -> np.ndarray:
    """Pixels ``(n, c, h, w)`` as bytes ``(n, h, w, 3)``. Three channels are RGB; any other number
    is shown as its mean. What is not finite is black, what lies beyond [0, 1] clipped.
    """
    shown = torch.nan_to_num(pixels.detach(), posinf=0.0, neginf=0.0).clamp(0, 1).cpu().float()
    if shown.shape[1] != 3:
        shown = shown.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return (shown * 255).round().byte().permute(0, 2, 3, 1).numpy()


def picture(pixels: np.ndarray) -> Any:
    """Bytes ``(h, w, 3)`` as a PIL picture."""
    from PIL import Image

    return Image.fromarray(pixels)


def png_of(figure: Figure, **options: Any) -> bytes:
    """A figure of matplotlib as a PNG; ``options`` as its ``savefig`` takes them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", **options)
    return content.getvalue()


def inline(png: bytes) -> str:
    """A PNG as an address that holds the picture itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def inline_png(pixels: np.ndarray) -> str:
    """Bytes ``(h, w, 3)`` as such an address."""
    content = io.BytesIO()
    picture(pixels).save(content, format="PNG")
    return inline(content.getvalue())
