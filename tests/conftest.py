"""Fixtures that all tests share: the real assets, and pictures made here."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest_plugins = ["edgecv.testing.plugin"]  # an entry point where EdgeCV is installed

# A shell starts background jobs with SIGINT ignored, and children inherit that: the tests of
# Ctrl-C would wait for ever for a process that cannot hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and pictures: ``EDGECV_ASSETS``, or ``../shared/assets``.

    They are not part of the repository. Without them the test is skipped, unless
    ``EDGECV_REQUIRE_ASSETS=1`` (CI) says that they have to be there.
    """
    root = Path(__file__).resolve().parents[1]
    named = os.environ.get("EDGECV_ASSETS")
    folder = Path(named) if named else root.parent / "shared" / "assets"
    if not folder.is_dir():
        message = f"the assets are not there ({folder}); set EDGECV_ASSETS to their folder"
        if os.environ.get("EDGECV_REQUIRE_ASSETS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """``tests/golden``: files of past releases, which go on loading."""
    return Path(__file__).resolve().parent / "golden"


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """A synthetic photograph, uint8 ``[48, 64, 3]`` RGB: ramps, an edge, some noise.

    No two of its orientations, nor of its channels, are alike.
    """
    rows, columns = np.mgrid[0:48, 0:64]
    planes = [columns * 4, rows * 5, (rows + columns) * 2]
    out = np.stack(planes, axis=-1) + np.random.default_rng(0).integers(0, 12, (48, 64, 3))
    out[8:20, 10:40] = (240, 30, 90)
    return out.clip(0, 255).astype(np.uint8)


@pytest.fixture
def picture(pixels: NDArray[np.uint8]) -> Image.Image:
    """:func:`pixels` as a PIL picture of 64x48."""
    return Image.fromarray(pixels)


@pytest.fixture
def picture_file(picture: Image.Image, tmp_path: Path) -> Path:
    """:func:`picture` as a PNG file."""
    path = tmp_path / "picture.png"
    picture.save(path)
    return path
