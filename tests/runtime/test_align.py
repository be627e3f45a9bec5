"""Alignment: the least-squares similarity, and the picture it brings to the template."""

import numpy as np
import pytest
from PIL import Image

from edgecv.align import SIZE, TEMPLATE, align_face, similarity_transform
from edgecv.errors import InputError


def umeyama(source, target):
    """Umeyama 1991, equations 34 to 43, by the singular value decomposition."""
    x, y = source - source.mean(0), target - target.mean(0)
    u, d, vt = np.linalg.svd(y.T @ x / len(x))
    s = np.diag([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    r = u @ s @ vt
    c = np.trace(np.diag(d) @ s) / (x**2).sum() * len(x)
    return np.column_stack([c * r, target.mean(0) - c * r @ source.mean(0)])


def test_it_is_umeyamas_transform():
    rng = np.random.default_rng(0)
    for _ in range(50):
        target = TEMPLATE + rng.normal(0, 3, TEMPLATE.shape)
        angle, scale = rng.uniform(-3, 3), rng.uniform(0.1, 10)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        source = TEMPLATE @ turn.T + rng.uniform(-500, 500, 2) + rng.normal(0, scale, (5, 2))
        found = similarity_transform(source, target)
        # both in float64; coordinates of thousands lose four digits
        assert np.allclose(found, umeyama(source, target), rtol=1e-9, atol=1e-8)
        assert np.allclose(found[0, 0], found[1, 1])
        assert np.allclose(found[0, 1], -found[1, 0])


def test_no_other_similarity_is_nearer():
    rng = np.random.default_rng(1)
    source = TEMPLATE * 2 + rng.normal(0, 5, TEMPLATE.shape)
    best = similarity_transform(source, TEMPLATE)

    def error(m):
        return ((source @ m[:, :2].T + m[:, 2] - TEMPLATE) ** 2).sum()

    for step in rng.normal(0, 1e-3, (200, 4)):
        a, b, x, y = step
        other = best + np.array([[a, -b, x], [b, a, y]])
        assert error(other) > error(best)


@pytest.mark.parametrize(("scale", "angle"), [(1, 0), (0.5, 0.4), (1.7, -2.0), (3.0, 0.3), (6, 1)])
def test_the_face_comes_to_the_template(scale, angle):
    """Coloured spots at the landmarks of a picture are at the template's points afterwards."""
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (TEMPLATE - 56) @ turn.T + (450, 400)
    y, x = np.mgrid[:800, :900]
    picture = np.zeros((800, 900, 3), np.float64)
    for i, (px, py) in enumerate(points):
        spot = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (3 * scale) ** 2)) * 250
        for channel in range(3):
            picture[..., channel] += spot * ((i + 1) >> channel & 1)
    face = np.asarray(align_face(Image.fromarray(picture.clip(0, 255).astype(np.uint8)), points))
    assert face.shape == (SIZE, SIZE, 3)
    y, x = np.mgrid[:SIZE, :SIZE]
    for i, (px, py) in enumerate(TEMPLATE):
        near = (x - px) ** 2 + (y - py) ** 2 < 7**2
        channel = next(c for c in range(3) if (i + 1) >> c & 1)
        weight = face[..., channel] * near.astype(float)
        centre = np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()
        # the spot's centre of mass within the disc: a quarter of a pixel for the disc's ragged rim
        assert np.abs(centre - (px, py)).max() < 0.25


def test_at_the_template_itself_nothing_is_resampled(pixels):
    picture = Image.fromarray(np.resize(pixels, (SIZE, SIZE, 3)))
    wide = Image.new("RGB", (300, 200))
    wide.paste(picture, (40, 30))
    for given, points in ((picture, TEMPLATE), (wide, TEMPLATE + np.array([40, 30]))):
        face = np.asarray(align_face(given, points)).astype(int)
        # Pillow cuts 249.9999 off to 249, and what lies 1e-14 outside is black
        inner = np.s_[1:-1, 1:-1]
        assert np.abs(face - np.asarray(picture))[inner].max() <= 1


def test_landmarks_that_make_no_face_are_refused():
    picture = Image.new("RGB", (50, 50))
    for points, message in [
        (np.ones((5, 2)), "all lie in one place"),
        (np.full((5, 2), np.nan), "NaN"),
        (np.ones((4, 2)), "expected two lists of points"),
        (TEMPLATE * 50 + 5000, "outside the picture"),
    ]:
        with pytest.raises(InputError, match=message):
            align_face(picture, points)
    assert not np.asarray(align_face(picture, TEMPLATE + 500)).any()  # outside is black
