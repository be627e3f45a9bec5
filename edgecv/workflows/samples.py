"""``edgecv samples``: photographs out of scikit-image's own package data."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from edgecv.errors import InputError
from edgecv.files import atomic_write

# Files that lie inside the scikit-image wheel (others of skimage.data are downloaded on demand):
# file -> the name it gets here
PHOTOGRAPHS = {
    "chelsea.png": "cat.jpg",
    "coffee.png": "coffee.jpg",
    "astronaut.png": "astronaut.jpg",
    "rocket.jpg": "rocket.jpg",
}


def write_samples(folder: str | os.PathLike[str]) -> list[Path]:
    """Write the photographs to ``folder`` as JPEG; returns their paths, sorted.

    Raises :class:`~edgecv.errors.InputError` where scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError as error:
        raise InputError(
            "the sample photographs come with scikit-image, which is not installed; "
            "pip install 'edgecv[demo]'"
        ) from error
    source = Path(skimage.data.__file__).parent
    written = []
    for name, target in PHOTOGRAPHS.items():
        if not (source / name).is_file():
            continue  # which pictures lie in the wheel differs by release
        with Image.open(source / name) as picture:
            rgb = picture.convert("RGB")
        path = Path(folder) / target
        with atomic_write(path) as file:
            rgb.save(file, "JPEG", quality=95)
        written.append(path)
    if not written:
        raise InputError(f"scikit-image's package data ({source}) has none of the photographs")
    return sorted(written)
