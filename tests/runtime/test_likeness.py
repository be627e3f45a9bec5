"""A learned likeness: its contract, galleries that compare by it, and what they refuse."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edgecv.errors import InputError, SpecError
from edgecv.faces import FacePipeline
from edgecv.gallery import Gallery, Likeness, Settings, Space, comparison, scores, verify
from edgecv.gallery.likeness import probabilities
from edgecv.gallery.thresholds import at_far, roc
from edgecv.spec import (
    PARENT_MEAN,
    Decoding,
    ModelSpec,
    Preparation,
    TensorSpec,
    read_spec,
    write_spec,
)

SIZE = 64
EMPTY_GRAPH = b"\x3a\x00"  # the fake backend's answers are random, by the picture


def likeness(measure="l1", seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    return Likeness(measure, tuple(rng.standard_normal(size).tolist()), 1.5)


def spec(options, size=SIZE, **changes):
    base = ModelSpec(
        name="net",
        task="embed",
        inputs=(TensorSpec("input", (1, 3, 8, 8)),),
        outputs=(TensorSpec("embedding", (1, size)),),
        preparation=Preparation(8, 8, fit="stretch"),
        decoding=Decoding("embedding", options),
        labels=(),
        provenance={"weights": {"sha256": "c" * 64}},
    )
    return replace(base, **changes)


def carrying(given, **changes):
    return spec({"normalize": False, "likeness": given}, **changes)


# --- the contract ------------------------------------------------------------------------------


def test_a_file_carries_it_without_loss(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**32, 40_000, dtype=np.uint32)
    bits[0] = 0x15AE43FD  # 7.038531e-26 in short, which by way of a double becomes the next float32
    values = bits.view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 1e15)]
    made = Likeness("l1", tuple(values.tolist()), 0.1)
    write_spec(EMPTY_GRAPH, carrying(made.to_dict(), size=len(values)), tmp_path / "net.onnx")
    found = Likeness.of(read_spec(tmp_path / "net.onnx"))
    assert found == made
    assert np.array_equal(found.vector, values)
    assert found.bias == np.float32(0.1)


def test_a_contract_without_one():
    assert Likeness.of(spec({"normalize": True})) is None
    assert comparison(spec({"normalize": True})) == ("cosine", None)
    assert comparison(spec({"normalize": True}), "euclidean") == ("euclidean", None)
    with pytest.raises(InputError, match="net: this file carries no learned likeness"):
        comparison(spec({"normalize": True}), "likeness")
    with pytest.raises(InputError, match="metric must be one of"):
        comparison(spec({"normalize": True}), "manhattan")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"weights": [1.0] * 5}, "expected 64 weights, one for each value of the output .*, got 5"),
        ({"weights": []}, "a weight for each value of an embedding, got none"),
        ({"weights": "AAAA"}, "'weights' must be list, got str"),
        ({"weights": [None] * SIZE}, "'weights' must be a list of numbers"),
        ({"weights": [float("nan")] * SIZE}, "must be finite"),
        ({"weights": [1e300] * SIZE}, "must be finite and of usual size"),
        ({"weights": [10**400] * SIZE}, "too large"),
        ({"bias": float("inf")}, "must be finite"),
        ({"bias": True}, "'bias' must be float, got bool"),
        ({"bias": None}, "'bias' is missing"),
        ({"measure": "l3"}, "measure must be one of l1, chi-square, got 'l3'"),
    ],
)
def test_a_damaged_one_is_named(changes, text):
    with pytest.raises(SpecError, match=f"net: decoding 'embedding': likeness.*{text}"):
        Likeness.of(carrying({**likeness().to_dict(), **changes}))


def test_one_that_is_no_object_or_stands_beside_normalize():
    with pytest.raises(SpecError, match="'likeness' must be dict, got list"):
        Likeness.of(carrying([1.0]))
    with pytest.raises(SpecError, match="'normalize' must be false beside it"):
        Likeness.of(spec({"normalize": True, "likeness": likeness().to_dict()}))


def test_it_is_no_part_of_the_space():
    space = Space.of(carrying(likeness().to_dict()))
    assert space == Space.of(spec({"normalize": False}))  # as files of before have it
    assert space == Space.of(carrying(likeness(seed=1).to_dict()))


def test_an_int8_file_that_moved_its_mean_to_a_level_shares_the_space():
    parent = carrying(likeness().to_dict(), preparation=Preparation(8, 8, mean=(0.5,) * 3))
    moved = replace(parent, preparation=Preparation(8, 8, mean=(128 / 255,) * 3), precision="int8")
    assert Space.of(moved) != Space.of(parent)
    kept = replace(moved, quantization={PARENT_MEAN: [0.5, 0.5, 0.5]})
    Space.of(parent).check(Space.of(kept), "door")


# --- numbers -----------------------------------------------------------------------------------


def test_probabilities_neither_overflow_nor_lose_the_small_ones():
    found = probabilities(np.array([-1e38, -700.0, -40.0, 0.0, 40.0, 1e38]))
    expected = [0.0, np.exp(-700.0), np.exp(-40.0), 0.5, 1 - np.exp(-40.0), 1.0]
    assert np.allclose(found, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("a", "weights", "metric", "text"),
    [
        (np.ones((2, 4)), None, "likeness", "its weights must be a Likeness"),
        (np.ones((2, 4)), np.ones(4), "likeness", "its weights must be a Likeness"),
        (np.ones((2, 4)), likeness(size=5), "likeness", "compares vectors of 5 values, got 4"),
        (np.ones((2, 4)), likeness(size=4), "cosine", "a Likeness belongs to likeness"),
        (np.ones((2, 4)), likeness(size=4), "chi-square", "a Likeness belongs to likeness"),
        (-np.ones((1, 4)), likeness("chi-square", size=4), "likeness", "negative values"),
    ],
)
def test_what_cannot_be_compared(a, weights, metric, text):
    with pytest.raises(InputError, match=text):
        scores(a, np.ones((1, 4)), metric, weights)


# --- galleries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["l1", "chi-square"])
@pytest.mark.parametrize("pooling", ["best", "mean"])
def test_a_gallery_decides_by_it(tmp_path, measure, pooling):
    learned = likeness(measure)
    space = Space.of(carrying(learned.to_dict()))
    settings = Settings(space, "likeness", threshold=0.5, pooling=pooling, weights=learned)
    rng = np.random.default_rng(2)
    vectors = rng.random((40, SIZE), np.float32)
    names = [f"p{i % 10}" for i in range(40)]
    with Gallery.create(tmp_path / "door", settings) as made:
        made.enrol_many(names, vectors)
    with Gallery.open(tmp_path / "door", space) as door:
        assert door.settings == settings
        query = vectors[3] + np.float32(0.01)
        (found,) = door.identify(query)
        rows = {n: vectors[[m == n for m in names]] for n in set(names)}
        if pooling == "mean":
            rows = {n: r.mean(axis=0, keepdims=True) for n, r in rows.items()}
        slow = {n: scores(r, query, "likeness", learned).max() for n, r in rows.items()}
        best = sorted(slow, key=slow.get, reverse=True)
        assert [c.name for c in found.candidates] == best[:5]
        for candidate in found.candidates:  # float32 of what 1:1 says in float64
            assert door.verify(candidate.name, query).score == pytest.approx(
                candidate.score, rel=2**-23
            )
        assert (found.name is not None) == (slow[best[0]] >= 0.5)
        door.configure(threshold=0.0, margin=slow[best[0]] - slow[best[1]] + 1e-6)
        assert door.identify(query)[0].reason == "ambiguous"
        with pytest.raises(InputError, match=r"from 0 to 1, got 1\.1"):
            door.configure(threshold=1.1)


def test_settings_that_were_tampered_with(tmp_path):
    learned = likeness(size=4)
    settings = Settings(Space("a" * 64, 4), "likeness", 0.5, weights=learned)
    Gallery.create(tmp_path / "door", settings).close()
    path = tmp_path / "door" / "gallery.json"
    whole = path.read_text()
    for key, value, text in [
        ("weights", [1.0], "of 1 values, got 4"),
        ("measure", 3, "'measure' must be str"),
    ]:
        data = json.loads(whole)
        data["settings"]["weights"][key] = value
        path.write_text(json.dumps(data))
        with pytest.raises(
            InputError, match=rf"gallery\.json: the gallery's settings are .*{text}"
        ):
            Gallery.open(tmp_path / "door")
    with pytest.raises(InputError, match="must be a Likeness"):
        replace(settings, weights=None)


def test_thresholds_are_chosen_as_for_other_metrics():
    rng = np.random.default_rng(3)
    same = np.arange(200) % 2 == 0
    found = probabilities(rng.standard_normal(200) + 3 * same)
    choice = at_far(roc(found, same, "likeness"), 0.05)
    assert choice.far == (found[~same] >= choice.threshold).mean() <= 0.05
    assert choice.tar == (found[same] >= choice.threshold).mean() > 0.5
    assert 0 < choice.threshold < 1


def test_two_pictures_are_compared_as_the_file_says(tmp_path):
    learned = likeness()
    for name, options in [
        ("pair", {"normalize": False, "likeness": learned.to_dict()}),
        ("plain", {"normalize": False}),
    ]:
        write_spec(EMPTY_GRAPH, spec(options), tmp_path / f"{name}.onnx")
    pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    with FacePipeline(None, tmp_path / "pair.onnx", backend="fake") as pair:
        found = pair.compare(*pictures, 0.5)
        x, y = (pair.one(picture).vector for picture in pictures)
        assert found.metric == "likeness"
        assert found.score == scores(x, y, "likeness", learned)[0]
        assert found == verify(x, y, 0.5, "likeness", learned)
        assert pair.compare(*pictures, 0.5, metric="cosine").metric == "cosine"
    with FacePipeline(None, tmp_path / "plain.onnx", backend="fake") as plain:
        assert plain.compare(*pictures, 0.5).metric == "cosine"
