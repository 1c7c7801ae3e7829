"""Images of a VAE for the report: held-out images, reconstructions, samples from the prior, and interpolations."""

import base64
import io
from typing import Any

import numpy as np
import torch

from kullback.runs.run_directory import RunDirectory
from kullback.train.vae.models import VAE

__all__ = ["add_pictures"]

_IMAGES = 16
_INTERPOLATION_STEPS = 9
_MIN_SIDE = 32  # smaller images are enlarged to this many pixels


@torch.no_grad()
def add_pictures(run: RunDirectory, model: Any, x: torch.Tensor, when: str) -> None:
    """Add rows of PNG images to pictures.json; nothing is written for models other than a `VAE`.

    Args:
        run: The run directory.
        model: The model.
        x: Held-out images, shape (n, height, width).
        when: The key of the rows, "before" or "after" training.
    """
    if not isinstance(model, VAE):
        return
    generator = torch.Generator().manual_seed(0)
    originals = x[:_IMAGES]
    loc, _ = model.posterior(originals)
    weights = torch.linspace(0, 1, _INTERPOLATION_STEPS)[:, None]
    rows = {
        "held-out images": originals,
        "their reconstructions": model.decode(loc),
        "samples of the prior": model.decode(torch.randn(_IMAGES, model.latents, generator=generator)),
    }
    for first, last in ((0, len(originals) // 2), (1, len(originals) - 1)):
        title = f"from image {first + 1} to image {last + 1}"
        rows[title] = model.decode(loc[first] * (1 - weights) + loc[last] * weights)
    run.set_pictures(
        when, [{"title": title, "images": [_png(image) for image in images.numpy()]} for title, images in rows.items()]
    )


def _png(image: np.ndarray) -> str:
    """An image with values in [0, 1] as a PNG file in base64."""
    from PIL import Image

    grey = Image.fromarray(np.round(255 * np.clip(image, 0, 1)).astype(np.uint8))
    factor = max(1, _MIN_SIDE // min(image.shape))
    file = io.BytesIO()
    grey.resize((grey.width * factor, grey.height * factor), Image.Resampling.NEAREST).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
