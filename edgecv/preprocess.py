"""From a picture to the input tensor, exactly as the model's contract says.

NumPy and Pillow only; OpenCV, where it is installed, makes ``opencv-linear`` faster and nothing
else. The geometry equals torchvision's on PIL pictures (``Resize``, ``CenterCrop``), because both
call Pillow's resampling; tests hold it to bit equality.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edgecv.errors import InputError
from edgecv.files import open_binary
from edgecv.resampling import opencv_linear
from edgecv.results import Placement
from edgecv.spec import Preparation

Picture: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"
Pixels: TypeAlias = NDArray[np.uint8]  # [H, W, 3] RGB, or [H, W, 1] gray

PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)

MAX_PIXELS = 178_956_970  # of a resized picture; Pillow's own limit of a decoded one

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
    pixels = _check_array(array, color)
    if pixels.shape[2] == 1:
        return Image.fromarray(pixels[:, :, 0]).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(pixels if color == "rgb" else pixels[:, :, ::-1]))


def _check_array(array: NDArray[np.uint8], color: str) -> Pixels:
    """``array`` as ``[H, W, 3]`` or ``[H, W, 1]``, or the error that says what it is instead."""
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
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise InputError(
            f"expected an array [H, W, 3] or [H, W], got {array.shape}"
            + ("; move the channels last" if array.ndim == 3 and array.shape[0] == 3 else "")
        )
    if 0 in array.shape:
        raise InputError(f"an empty picture: array of shape {array.shape}")
    return array[:, :, None] if array.ndim == 2 else array


def fit_pixels(
    picture: Image.Image | Pixels, p: Preparation, *, color: str = "rgb"
) -> tuple[Pixels, Placement]:
    """Fit a picture to ``p.height`` x ``p.width`` and put its channels in order.

    ``picture`` is RGB, or an array uint8 ``[H, W, 3]`` in the order ``color``. Returns uint8
    ``[height, width, channels]`` and where the picture lies in it. With fit ``multiple`` the size
    is the picture's own, see :class:`Preparation`.
    """
    if isinstance(picture, np.ndarray):
        height, width = picture.shape[:2]
    else:
        (width, height), color = picture.size, "rgb"
    size, corner, canvas, scale = _geometry(width, height, p)
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(
            f"a picture of {width}x{height} pixels, resized to a short side of {min(size)}, would "
            f"have {size[0]}x{size[1]}: too narrow for a model that cuts out the centre"
        )
    resized = _resample(picture, size, p.interpolation)
    flip = color != ("bgr" if p.color == "bgr" else "rgb")
    pixels = place(resized[:, :, ::-1] if flip else resized, corner, canvas, p.pad_value)
    if p.color == "gray":
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
    return pixels, Placement(width, height, *scale, *corner, *canvas)


def _geometry(
    width: int, height: int, p: Preparation
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[float, float]]:
    """What becomes of a picture: its new size, its corner in the input (negative where it is cut
    off), the input's size and the scale; each as x and y."""
    canvas = (p.width, p.height)
    if p.fit == "stretch":
        return canvas, (0, 0), canvas, (p.width / width, p.height / height)
    if p.fit == "crop":
        size = short_side_size(width, height, p.resize or min(p.height, p.width))
        left, top = crop_corner(*size, p)
        return size, (-left, -top), canvas, (size[0] / width, size[1] / height)
    scale = min(p.width / width, p.height / height)
    if p.fit == "multiple":
        scale = min(scale, 1.0)
    whole = math.floor if p.size_rounding == "floor" else round
    new_width = min(p.width, max(1, whole(width * scale)))
    new_height = min(p.height, max(1, whole(height * scale)))
    if p.fit == "multiple":
        canvas = (new_width + -new_width % p.multiple, new_height + -new_height % p.multiple)
    centered = p.fit == "letterbox" and p.pad_position == "center"
    left, top = (p.width - new_width) // 2, (p.height - new_height) // 2
    return (new_width, new_height), (left, top) if centered else (0, 0), canvas, (scale, scale)


def unfit_pixels(pixels: Pixels, p: Preparation) -> Image.Image:
    """The inverse of :func:`fit_pixels`: a picture that it makes ``pixels`` of, not resampling.

    ``pixels`` is uint8 ``[height, width, channels]``, in the order of ``p``. What a crop will cut
    off repeats the border; what it will pad is lost.
    """
    if p.fit == "crop":
        short = p.resize or min(p.height, p.width)
        upright = p.height > p.width
        height = max(short, p.height) if upright else short
        width = short if upright else max(short, p.width)
        rows, columns = (
            (np.arange(whole) - _corner(whole - part, p.crop_rounding)).clip(0, part - 1)
            for whole, part in ((height, p.height), (width, p.width))
        )
        pixels = pixels[rows][:, columns]
    if p.color == "gray":
        pixels = np.repeat(pixels, 3, axis=2)
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1] if p.color == "bgr" else pixels))


def _resample(picture: Image.Image | Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    if interpolation == "opencv-linear":
        return opencv_linear(np.asarray(picture), *size)
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(np.ascontiguousarray(picture))
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling[_KERNELS[interpolation]])
    return np.asarray(picture)


def place(pixels: Pixels, corner: tuple[int, int], size: tuple[int, int], pad_value: int) -> Pixels:
    """A canvas of ``size`` with ``pixels`` at ``corner``; what hangs over is cut off."""
    (left, top), (width, height) = corner, size
    part = pixels[max(0, -top) : height - top, max(0, -left) : width - left]
    if part.shape[:2] == (height, width):
        return part
    canvas = np.full((height, width, pixels.shape[2]), pad_value, np.uint8)
    top, left = max(0, top), max(0, left)
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
    return canvas


def short_side_size(width: int, height: int, short: int) -> tuple[int, int]:
    """torchvision's ``Resize(short)``: the long side is truncated, not rounded."""
    if width <= height:
        return short, max(1, int(short * height / width))
    return max(1, int(short * width / height)), short


def crop_corner(width: int, height: int, p: Preparation) -> tuple[int, int]:
    """Left and top of the crop in a picture whose short side is ``p.resize``; negative: padded."""
    return _corner(width - p.width, p.crop_rounding), _corner(height - p.height, p.crop_rounding)


def _corner(excess: int, rounding: str) -> int:
    return round(excess / 2) if rounding == "round-half-even" else excess // 2


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
    if isinstance(picture, np.ndarray) and (frame := _check_array(picture, color)).shape[2] == 3:
        pixels, placement = fit_pixels(frame, p, color=color)  # a video frame: spare the copies
    else:
        opened = open_picture(picture, color=color)
        try:
            pixels, placement = fit_pixels(opened, p)
        except InputError as error:
            where = f"{picture}: " if isinstance(picture, str | os.PathLike) else ""
            raise InputError(f"{where}{error}") from error
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
