"""Image data sets: the digits of scikit-learn, an array in a .npy file, or a folder of image files."""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kullback.errors import InputError

__all__ = ["Images", "load_images"]

_EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
_HELD_OUT_FRACTION = 0.2
_MIN_IMAGES = 20


class Images(NamedTuple):
    """Images of equal size, split into training and held-out images.

    Args:
        train: Training images, shape (n, height, width), values in [0, 1].
        held_out: Held-out images, shape (m, height, width), values in [0, 1].
        train_labels: Classes of the training images, shape (n,), integers; None if the data has no classes.
        held_out_labels: Classes of the held-out images, shape (m,), integers; None if the data has no classes.
    """

    train: np.ndarray
    held_out: np.ndarray
    train_labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None


def load_images(data: str, *, seed: int = 0) -> Images:
    """Load greyscale images, and split off a fifth of them at random as held-out images.

    Args:
        data: "digits" for the digits of scikit-learn; a .npy file of shape (n, height, width) with values in [0, 1] or
            integers from 0 to 255; or a folder of image files of equal size.
        seed: The seed of the split.

    Returns:
        The images in float32. Only the digits have classes.

    Raises:
        InputError: The path does not exist, its contents are not images of one of these forms, or there are fewer than
            20 images.
    """
    images, labels = _digits() if data == "digits" else (_read(Path(data)), None)
    if len(images) < _MIN_IMAGES:
        raise InputError(f"--data {data}: expected {_MIN_IMAGES} images or more, got {len(images)}")
    order = np.random.default_rng(seed).permutation(len(images))
    count = round(_HELD_OUT_FRACTION * len(images))
    held_out, train = order[:count], order[count:]
    if labels is None:
        return Images(images[train], images[held_out])
    return Images(images[train], images[held_out], labels[train], labels[held_out])


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    return (np.asarray(pixels, np.float32) / 16).reshape(-1, 8, 8), np.asarray(classes, np.int64)


def _read(path: Path) -> np.ndarray:
    """The images of a .npy file or of a folder."""
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise InputError(f"--data {path}: not found; expected digits, a .npy file or a folder of images")
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        reason = "it has another format, or contains Python objects" if isinstance(error, ValueError) else error
        raise InputError(f"--data {path}: expected an array in the format of np.save: {reason}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"--data {path}: expected one array in the format of np.save, got an archive of np.savez")
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise InputError(
            f"--data {path}: expected numbers of shape (n, height, width), got {array.dtype} {array.shape}"
        )
    is_integer = array.dtype.kind in "iu"
    scaled = array.astype(np.float32) / (255 if is_integer and array.max() > 1 else 1)
    outside = ~((scaled >= 0) & (scaled <= 1))
    if outside.any():
        index = tuple(int(i) for i in np.argwhere(outside)[0])
        raise InputError(
            f"--data {path}: expected values in [0, 1], or integers from 0 to 255, got {array[index]} at index {index}"
        )
    return scaled


def _grey(file: Path, image: Any) -> np.ndarray:
    """The grey values of an image of Pillow, in [0, 1]."""
    # Conversions of Pillow from these modes to 8 bits do not scale the values: they clip or wrap them.
    if image.mode.startswith("I;16"):
        return np.asarray(image, np.float32) / 65535
    if image.mode in ("I", "F"):
        raise InputError(
            f"{file}: expected an image with 8 or 16 bits for each value, got one with 32 bits; save the values as an "
            "array in [0, 1] by np.save"
        )
    return np.asarray(image.convert("L"), np.float32) / 255


def _read_folder(path: Path) -> np.ndarray:
    """The image files of a folder in the order of their names, in [0, 1]."""
    from PIL import Image, UnidentifiedImageError

    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _EXTENSIONS)
    images: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(_grey(file, image))
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise InputError(f"{file}: not a readable image: {error}") from error
        if images[-1].shape != images[0].shape:
            raise InputError(
                f"{file}: expected images of equal size, got (height, width) {images[-1].shape}, but "
                f"{files[0].name} has {images[0].shape}"
            )
    if not images:
        raise InputError(f"--data {path}: expected image files ({', '.join(sorted(_EXTENSIONS))}), found none")
    return np.stack(images)
