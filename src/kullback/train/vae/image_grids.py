"""What a VAE sees and dreams, as pictures for the report: images, their reconstructions, samples, and paths between."""

import base64
import io
from typing import Any

import numpy as np
import torch

from kullback.runs.run_directory import RunDirectory
from kullback.train.vae.models import VAE

__all__ = ["add_pictures"]

_SHOWN = 16
_BETWEEN = 9  # pictures of a path
_LEAST = 32  # pixels that a small image's side is enlarged to


@torch.no_grad()
def add_pictures(run: RunDirectory, model: Any, x: torch.Tensor, when: str) -> None:
    """Write pictures.json: rows of PNGs in base64, before or after training."""
    if not isinstance(model, VAE):
        return
    draws = torch.Generator().manual_seed(0)
    shown = x[:_SHOWN]
    loc, _ = model.posterior(shown)
    path = torch.linspace(0, 1, _BETWEEN)[:, None]
    rows = {
        "held-out images": shown,
        "their reconstructions": model.decoded(loc),
        "samples of the prior": model.decoded(torch.randn(_SHOWN, model.latents, generator=draws)),
    }
    for first, last in ((0, len(shown) // 2), (1, len(shown) - 1)):
        title = f"from image {first + 1} to image {last + 1}"
        rows[title] = model.decoded(loc[first] * (1 - path) + loc[last] * path)
    run.set_pictures(
        when, [{"title": title, "images": [_png(one) for one in images.numpy()]} for title, images in rows.items()]
    )


def _png(image: np.ndarray) -> str:
    from PIL import Image

    grey = Image.fromarray(np.round(255 * np.clip(image, 0, 1)).astype(np.uint8))
    times = max(1, _LEAST // min(image.shape))
    file = io.BytesIO()
    grey.resize((grey.width * times, grey.height * times), Image.Resampling.NEAREST).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
