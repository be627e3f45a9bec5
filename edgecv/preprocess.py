"""From a picture to the input tensor, exactly as the model's contract says.

NumPy and Pillow only. The geometry equals torchvision's on PIL pictures (``Resize``,
``CenterCrop``), because both call Pillow's resampling; tests hold it to bit equality.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edgecv.errors import InputError
from edgecv.files import open_binary
from edgecv.results import Placement
from edgecv.spec import Preparation

if TYPE_CHECKING:
    from PIL.Image import Resampling

Picture: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"
Pixels: TypeAlias = NDArray[np.uint8]  # [H, W, 3] RGB, or [H, W, 1] gray

PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)

_KERNELS = {
    "pillow-nearest": "NEAREST",
    "pillow-box-antialias": "BOX",
    "pillow-bilinear-antialias": "BILINEAR",
    "pillow-bicubic-antialias": "BICUBIC",
    "pillow-lanczos-antialias": "LANCZOS",
}


@dataclass(frozen=True, eq=False)
class Prepared:
    """One picture as the model takes it: ``tensor`` in the contract's layout and dtype, without
    the batch axis, and where the picture lies in it."""

    tensor: NDArray[Any]
    placement: Placement


def open_picture(source: Picture, *, color: str = "rgb") -> Image.Image:
    """Decode ``source`` to an upright 8-bit RGB picture.

    A path is opened and turned by its EXIF orientation. An array is ``[H, W, 3]`` uint8 in the
    order ``color`` (``rgb`` or ``bgr``), or ``[H, W]`` or ``[H, W, 1]`` gray. Alpha is blended
    onto white; 16-bit grey levels are scaled to 8 bits (``v / 257``), not cut off; CMYK, YCbCr,
    Lab and palette pictures are converted by Pillow. Of an animation the first frame is taken.

    Raises :class:`InputError` for anything that is not a whole picture.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, color)
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"expected a path, a PIL image or an [H, W, 3] uint8 array, got {type(source).__name__}"
        )
    path = Path(source)
    with open_binary(path) as file:
        return decode(file, str(path))


def decode(file: BinaryIO, where: str) -> Image.Image:
    """An encoded picture to an upright RGB one, by the rules of :func:`open_picture`.

    ``where`` names it in the :class:`InputError` of one that is broken.
    """
    try:
        with Image.open(file) as picture:
            picture.load()
            return to_rgb(picture)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Image.DecompressionBombError as error:  # above 178,956,970 pixels
        raise InputError(f"{where}: refused as a decompression bomb ({error})") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{where}: not a picture that Pillow can read") from error
    except Exception as error:  # decoders raise struct.error, IndexError, ... on broken files
        raise InputError(f"{where}: broken or cut-off picture ({error})") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """``picture`` upright and in mode RGB, by the rules of :func:`open_picture`."""
    if picture.width == 0 or picture.height == 0:
        raise InputError(f"an empty picture ({picture.width}x{picture.height} pixels)")
    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "RGB":
        return upright
    if upright.mode.startswith("I;16") or upright.mode == "I":
        # Pillow's own convert() clips 16-bit values at 255 and leaves a white picture
        levels = np.asarray(upright).astype(np.int64)
        return Image.fromarray((levels.clip(0, 65535) / 257).round().astype(np.uint8)).convert(
            "RGB"
        )
    if upright.mode == "F":
        raise InputError("a picture of floating-point values has no defined brightness range")
    if "transparency" in upright.info or upright.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return upright.convert("RGB")


def _from_array(array: NDArray[np.uint8], color: str) -> Image.Image:
    if color not in ("rgb", "bgr"):
        raise InputError(f"color must be 'rgb' or 'bgr', got {color!r}")
    if array.dtype != np.uint8:
        raise InputError(
            f"expected an array of uint8 values 0 to 255, got {array.dtype}; if yours are 0 to 1, "
            f"pass (array * 255).round().astype('uint8')"
        )
    if array.ndim == 3 and array.shape[2] == 4:
        raise InputError(
            f"got an array with four channels {array.shape}: cameras give BGRA, BGRx or RGBA, "
            f"which differ in order and in what the fourth means; pass array[..., :3] with "
            f"color='rgb' or color='bgr'"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise InputError(
            f"expected an array [H, W, 3] or [H, W], got {array.shape}"
            + ("; move the channels last" if array.ndim == 3 and array.shape[0] == 3 else "")
        )
    if 0 in array.shape:
        raise InputError(f"an empty picture: array of shape {array.shape}")
    if array.ndim == 2:
        return Image.fromarray(array).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(array if color == "rgb" else array[:, :, ::-1]))


def fit_pixels(picture: Image.Image, p: Preparation) -> tuple[Pixels, Placement]:
    """Fit an RGB picture to ``p.height`` x ``p.width`` and put its channels in order.

    Returns uint8 ``[height, width, channels]`` and where the picture lies in it.
    """
    kernel = _kernel(p.interpolation)
    width, height = picture.size
    if p.fit == "stretch":
        canvas, left, top = _resize(picture, (p.width, p.height), kernel), 0, 0
        scale_x, scale_y = p.width / width, p.height / height
    elif p.fit == "crop":
        new_width, new_height = _short_side_size(width, height, p.resize or min(p.height, p.width))
        resized = _resize(picture, (new_width, new_height), kernel)
        scale_x, scale_y = new_width / width, new_height / height
        left = _corner(new_width - p.width, p.crop_rounding)
        top = _corner(new_height - p.height, p.crop_rounding)
        if left < 0 or top < 0:
            canvas = _paste(resized, p, -left, -top)
        else:
            canvas = resized.crop((left, top, left + p.width, top + p.height))
        left, top = -left, -top
    else:
        scale_x = scale_y = min(p.width / width, p.height / height)
        new_width = min(p.width, max(1, round(width * scale_x)))
        new_height = min(p.height, max(1, round(height * scale_y)))
        left = (p.width - new_width) // 2 if p.pad_position == "center" else 0
        top = (p.height - new_height) // 2 if p.pad_position == "center" else 0
        canvas = _paste(_resize(picture, (new_width, new_height), kernel), p, left, top)
    pixels = np.asarray(canvas if p.color != "gray" else canvas.convert("L"))
    if p.color == "gray":
        pixels = pixels[:, :, None]
    elif p.color == "bgr":
        pixels = pixels[:, :, ::-1]
    return pixels, Placement(width, height, scale_x, scale_y, left, top)


def _kernel(interpolation: str) -> Resampling:
    return Image.Resampling[_KERNELS[interpolation]]


def _resize(picture: Image.Image, size: tuple[int, int], kernel: Resampling) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, kernel)


def _short_side_size(width: int, height: int, short: int) -> tuple[int, int]:
    """torchvision's ``Resize(short)``: the long side is truncated, not rounded."""
    if width <= height:
        return short, max(1, int(short * height / width))
    return max(1, int(short * width / height)), short


def _corner(excess: int, rounding: str) -> int:
    return round(excess / 2) if rounding == "round-half-even" else excess // 2


def _paste(picture: Image.Image, p: Preparation, left: int, top: int) -> Image.Image:
    canvas = Image.new("RGB", (p.width, p.height), (p.pad_value,) * 3)
    canvas.paste(picture, (left, top))
    return canvas


def normalize(pixels: Pixels, p: Preparation) -> NDArray[np.float32]:
    """uint8 ``[..., H, W, C]`` to float32 ``[..., C, H, W]``: ``(v / divisor - mean) / std``.

    A byte has 256 values, so each channel's are computed once, in float64, and looked up: the
    result is the correctly rounded one, and faster than the arithmetic on every pixel.
    """
    levels = np.arange(256, dtype=np.float64) / p.divisor
    out = np.empty((*pixels.shape[:-3], p.channels, *pixels.shape[-3:-1]), np.float32)
    for channel, (mean, std) in enumerate(zip(p.mean, p.std, strict=True)):
        table = ((levels - mean) / std).astype(np.float32)
        np.take(table, pixels[..., channel], out=out[..., channel, :, :], mode="clip")
    return out


def to_tensor(pixels: Pixels, p: Preparation, dtype: str = "float32") -> NDArray[Any]:
    """Fitted pixels uint8 ``[..., H, W, C]`` to the input's layout and dtype.

    uint8 stays as it is, since the file does the arithmetic itself; else :func:`normalize`.
    """
    if dtype != "uint8":
        values = normalize(pixels, p)
        tensor = np.moveaxis(values, -3, -1) if p.layout == "nhwc" else values
        return np.ascontiguousarray(tensor, dtype)
    return np.ascontiguousarray(pixels if p.layout == "nhwc" else np.moveaxis(pixels, -1, -3))


def prepare(
    picture: Picture, p: Preparation, *, dtype: str = "float32", color: str = "rgb"
) -> Prepared:
    """A picture to the tensor that a model with this contract and input dtype takes."""
    pixels, placement = fit_pixels(open_picture(picture, color=color), p)
    return Prepared(to_tensor(pixels, p, dtype), placement)


def stack(prepared: Sequence[Prepared]) -> NDArray[Any]:
    """The batch of pictures of one shape; of a single one no copy is made."""
    if len(prepared) == 1:
        return prepared[0].tensor[None]
    return np.stack([one.tensor for one in prepared])


def list_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """The picture files under ``folder``, sorted by path; hidden ones are left out."""
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder")
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in PICTURE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
