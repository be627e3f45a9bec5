"""Every kind of picture that people have becomes the right pixels, or an error that says why."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edgecv.errors import InputError
from edgecv.measure.seeded import seeded_pictures
from edgecv.preprocess import (
    fit_pixels,
    list_pictures,
    normalize,
    open_picture,
    prepare,
    unfit_pixels,
)
from edgecv.spec import Preparation

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed(tmp_path, orientation):
    picture = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    picture.save(path, exif=exif)
    turned = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: PIXELS[::-1].transpose(1, 0, 2),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: PIXELS[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    np.testing.assert_array_equal(np.asarray(open_picture(path)), turned)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LAB", "HSV"])
def test_other_modes_become_rgb(mode):
    converted = (
        open_picture(Image.fromarray(PIXELS).convert("RGB").convert(mode))
        if (mode != "LAB")
        else open_picture(Image.new("RGB", (4, 4)))
    )
    assert converted.mode == "RGB"


def test_sixteen_bit_gray_is_scaled_and_not_cut_off():
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    got = np.asarray(open_picture(Image.fromarray(levels)))[0, :, 0]
    np.testing.assert_array_equal(got, [0, 1, 128, 255])


def test_alpha_is_blended_onto_white():
    rgba = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert open_picture(rgba).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30] * 256)
    palette.info["transparency"] = 0
    assert open_picture(palette).getpixel((0, 0)) == (255, 255, 255)


def test_bgr_arrays_are_turned():
    np.testing.assert_array_equal(np.asarray(open_picture(PIXELS[..., ::-1], color="bgr")), PIXELS)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), "four channels"),
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((3, 8, 9), np.uint8), "move the channels last"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((2, 2, 2, 3), np.uint8), r"\[H, W, 3\]"),
    ],
)
def test_arrays_that_are_no_pictures(array, message):
    with pytest.raises(InputError, match=message):
        open_picture(array)


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [14_000, 100_000])
def test_decompression_bombs_are_refused(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(InputError, match="decompression bomb"):
        open_picture(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow on broken tags
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_cut_off_and_flipped_files_are_errors_and_never_something_else(tmp_path, suffix):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix))
    data = buffer.getvalue()
    path = tmp_path / f"broken.{suffix}"
    rng = np.random.default_rng(1)
    for trial in range(60):
        broken = bytearray(data)
        if trial % 2:
            del broken[int(rng.integers(1, len(data))) :]
        else:
            for _ in range(4):
                broken[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(broken)
        try:
            open_picture(path)
        except InputError as error:
            message = str(error)
        else:
            continue
        assert str(path) in message


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\xff\xd8\xff"])
def test_files_that_are_no_pictures(tmp_path, content):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.jpg"):
        open_picture(path)
    with pytest.raises(InputError, match="no such file"):
        open_picture(tmp_path / "absent.jpg")
    with pytest.raises(InputError, match="folder"):
        open_picture(tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (30, 20), (223, 224)])
@pytest.mark.parametrize("fit", ["crop", "stretch", "letterbox"])
@pytest.mark.parametrize("position", ["center", "top-left"])
def test_any_size_fits(size, fit, position):
    p = Preparation(32, 48, fit=fit, pad_position=position, pad_value=114)
    picture = np.full((size[1], size[0], 3), 200, np.uint8)
    pixels, placement = fit_pixels(open_picture(picture), p)
    assert pixels.shape == (32, 48, 3)
    assert (placement.width, placement.height) == size
    inside = pixels == 200
    assert inside.any()
    assert ((pixels == 114) | inside).all() or fit == "crop"


def test_a_line_of_pixels_is_not_blown_up_to_gigabytes(tmp_path):
    path = tmp_path / "line.png"
    Image.new("RGB", (1, 20_000)).save(path)
    with pytest.raises(InputError, match=r"line\.png: .* 1x20000 pixels, .* too narrow"):
        prepare(path, Preparation(224, 224))
    assert prepare(path, Preparation(224, 224, fit="letterbox")).tensor.shape == (3, 224, 224)


def test_letterbox_placement_maps_the_corners():
    p = Preparation(100, 100, fit="letterbox", pad_value=7)
    pixels, at = fit_pixels(open_picture(np.full((50, 200, 3), 250, np.uint8)), p)
    rows = np.flatnonzero((pixels == 250).all((1, 2)))
    assert rows[0] == at.offset_y
    assert rows[-1] + 1 == at.offset_y + at.height * at.scale_y


def test_channel_orders_and_gray():
    picture = open_picture(PIXELS)
    rgb, _ = fit_pixels(picture, Preparation(20, 20))
    bgr, _ = fit_pixels(picture, Preparation(20, 20, color="bgr"))
    np.testing.assert_array_equal(rgb[..., ::-1], bgr)
    gray = Preparation(20, 20, color="gray", mean=(0.0,), std=(1.0,))
    assert prepare(PIXELS, gray).tensor.shape == (1, 20, 20)
    wide = replace(gray, layout="nhwc")
    assert prepare(PIXELS, wide).tensor.shape == (20, 20, 1)
    taken = prepare(PIXELS, wide, dtype="uint8").tensor
    np.testing.assert_array_equal(taken, fit_pixels(picture, wide)[0])


def test_normalize_is_the_rounded_exact_result():
    p = Preparation(8, 9, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pixels = RNG.integers(0, 256, (2, 8, 9, 3), dtype=np.uint8)
    exact = (pixels.astype(np.float64) / 255 - p.mean) / p.std
    got = normalize(pixels, p)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, exact.transpose(0, 3, 1, 2).astype(np.float32))


def test_folders_are_listed_in_order_without_hidden_files(tmp_path):
    for name in ("b/2.JPG", "a/1.png", ".hidden/x.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    names = [path.relative_to(tmp_path).as_posix() for path in list_pictures(tmp_path)]
    assert names == ["a/1.png", "b/2.JPG"]


def test_seeded_pictures_never_change():
    """Recorded self-tests in deployed files depend on these bytes."""
    assert zlib.crc32(seeded_pictures(7, 3, 33, 47).tobytes()) == 0x1311CBD1


@pytest.mark.parametrize(
    "p",
    [
        Preparation(20, 30, fit="stretch"),
        Preparation(20, 30, color="bgr", fit="letterbox", interpolation="opencv-linear"),
        Preparation(24, 32, fit="multiple", multiple=8),
        Preparation(20, 20, resize=25),
        Preparation(20, 20, resize=23, crop_rounding="floor", color="gray"),
        Preparation(20, 31, resize=24),
        Preparation(31, 20, resize=24),
        Preparation(20, 30, resize=60),
    ],
    ids=lambda p: f"{p.fit}-{p.height}x{p.width}-{p.resize}-{p.color}",
)
def test_unfitted_pixels_are_fitted_back(p):
    pixels = np.random.default_rng(6).integers(
        0, 256, (p.height, p.width, p.channels), dtype=np.uint8
    )
    np.testing.assert_array_equal(fit_pixels(unfit_pixels(pixels, p), p)[0], pixels)


def test_what_a_crop_pads_is_lost_by_unfitting():
    p = Preparation(20, 20, resize=16, pad_value=7)
    pixels = np.random.default_rng(6).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    fitted = fit_pixels(unfit_pixels(pixels, p), p)[0]
    np.testing.assert_array_equal(fitted[2:18, 2:18], pixels[2:18, 2:18])
    assert (fitted[:2] == 7).all()
