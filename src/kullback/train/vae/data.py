"""Images to learn from: scikit-learn's digits, an array on disk, or a folder of pictures."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from kullback.errors import InputError

__all__ = ["Images", "load_images"]

_PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
_HELD_OUT = 0.2  # of the images
_FEWEST = 20


class Images(NamedTuple):
    """Images of one size, apart for training and for judging.

    Args:
        train: Shape (n, height, width), in [0, 1].
        held_out: The same.
        train_labels: Shape (n,), whole numbers; None where the data has none.
        held_out_labels: The same.
    """

    train: np.ndarray
    held_out: np.ndarray
    train_labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None


def load_images(data: str, *, seed: int = 0) -> Images:
    """Read images, grey, and set a fifth apart.

    Args:
        data: "digits" for scikit-learn's; a .npy file of shape (n, height, width), in [0, 1] or whole numbers up to
            255; or a folder of pictures of one size.
        seed: Of the split.

    Raises:
        InputError: There is no such file, it is not of that shape, or holds anything else.
    """
    images, labels = _digits() if data == "digits" else (_read(Path(data)), None)
    if len(images) < _FEWEST:
        raise InputError(f"--data {data}: expected {_FEWEST} images or more, got {len(images)}")
    order = np.random.default_rng(seed).permutation(len(images))
    apart = round(_HELD_OUT * len(images))
    judged, learned = order[:apart], order[apart:]
    if labels is None:
        return Images(images[learned], images[judged])
    return Images(images[learned], images[judged], labels[learned], labels[judged])


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    return (np.asarray(pixels, np.float32) / 16).reshape(-1, 8, 8), np.asarray(classes, np.int64)


def _read(path: Path) -> np.ndarray:
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InputError(f"--data {path}: not there; expected digits, a .npy file or a folder of pictures")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"--data {path}: expected an array as np.save writes it: {error}") from error
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise InputError(
            f"--data {path}: expected numbers of shape (n, height, width), got {array.dtype} {array.shape}"
        )
    whole = array.dtype.kind in "iu"
    scaled = array.astype(np.float32) / (255 if whole and array.max() > 1 else 1)
    outside = ~((scaled >= 0) & (scaled <= 1))
    if outside.any():
        at = tuple(int(i) for i in np.argwhere(outside)[0])
        raise InputError(
            f"--data {path}: expected values in [0, 1], or whole numbers up to 255, but {array[at]} is at {at}"
        )
    return scaled


def _folder(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _PICTURES)
    images: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as picture:
                images.append(np.asarray(picture.convert("L"), np.float32) / 255)
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise InputError(f"{file}: no picture that can be read: {error}") from error
        if images[-1].shape != images[0].shape:
            raise InputError(
                f"{file}: expected pictures of one size, got {images[-1].shape} after {files[0].name}'s "
                f"{images[0].shape} (height, width)"
            )
    if not images:
        raise InputError(f"--data {path}: expected pictures there ({', '.join(sorted(_PICTURES))}), found none")
    return np.stack(images)
