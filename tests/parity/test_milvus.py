"""The gallery over Milvus: the real embedded engine, held to what a folder answers."""

import numpy as np
import pytest

from edgecv.errors import InputError, RuntimeFailure
from edgecv.gallery import Gallery, Likeness, Settings, Space
from edgecv.gallery.milvus import is_milvus

SPACE = Space("a" * 64, 32)


def both(tmp_path, **settings):
    chosen = Settings(SPACE, **{"threshold": 0.5, **settings})
    return [Gallery.create(where, chosen) for where in (tmp_path / "g", f"{tmp_path}/m.db#door")]


@pytest.mark.parametrize(
    ("metric", "pooling"),
    [("cosine", "best"), ("cosine", "mean"), ("euclidean", "best"), ("squared-euclidean", "mean")],
)
def test_milvus_answers_as_a_folder_does(tmp_path, metric, pooling):
    rng = np.random.default_rng(0)
    people = rng.standard_normal((10, 3, 32)).astype(np.float32) * 0.3
    people += rng.standard_normal((10, 1, 32)).astype(np.float32)
    threshold = {"cosine": 0.6, "euclidean": 3.0, "squared-euclidean": 9.0}[metric]
    queries = people[:, 2] * 1.1
    answers = []
    for gallery in both(tmp_path, metric=metric, pooling=pooling, threshold=threshold):
        with gallery:
            assert gallery.identify(queries[0])[0].reason == "empty gallery"
            for i, pictures in enumerate(people[:9]):
                gallery.enrol(f'p"{i}\\', pictures[0])
                gallery.enrol(f'p"{i}\\', pictures[1], extend=True)
            with pytest.raises(InputError, match="is enrolled already"):
                gallery.enrol('p"3\\', queries[0])
            assert gallery.remove('p"7\\') == 2
            with pytest.raises(InputError, match="nobody is enrolled"):
                gallery.remove('p"7\\')
            assert set(gallery.people().values()) == {2}
            assert len(gallery.people()) == 8
            gallery.configure(margin=0.01)
            found = gallery.identify(queries)
            checked = gallery.verify('p"3\\', queries[3])
            assert checked.same
        answers.append([*found, checked])
    for ours, theirs in zip(*(a[:-1] for a in answers), strict=True):
        assert (ours.name, ours.reason) == (theirs.name, theirs.reason)
        assert [c.name for c in ours.candidates] == [c.name for c in theirs.candidates]
        scores = [[c.score for c in side.candidates] for side in (ours, theirs)]
        # sums of 32 float32 products, a squared distance of up to 100 among them
        assert np.allclose(*scores, rtol=1e-5, atol=1e-5)
    assert answers[0][-1].score == pytest.approx(answers[1][-1].score, rel=1e-6)
    assert answers[0][3].name == 'p"3\\'
    assert answers[0][7].name is answers[0][9].name is None


def test_it_is_there_the_next_time_and_belongs_to_one_net(tmp_path):
    where = f"{tmp_path}/m.db"
    with Gallery.create(where, Settings(SPACE, threshold=0.25, margin=0.1)) as gallery:
        gallery.enrol("anna", np.eye(32)[0])
    with pytest.raises(InputError, match="already"):
        Gallery.create(where, Settings(SPACE, threshold=0.25))
    with Gallery.open(where, SPACE) as gallery:
        assert gallery.settings == Settings(SPACE, threshold=0.25, margin=0.1)
        assert gallery.identify(np.eye(32)[0])[0].name == "anna"
    with pytest.raises(InputError, match="another model"):
        Gallery.open(where, Space("b" * 64, 32))


def test_what_milvus_cannot_do_is_said(tmp_path):
    where = f"{tmp_path}/m.db"
    with pytest.raises(InputError, match="Milvus has no chi-square"):
        Gallery.create(where, Settings(SPACE, metric="chi-square", threshold=1.0))
    learned = Likeness("l1", (-1.0,) * 32, 1.0)
    with pytest.raises(InputError, match=r"Milvus has no likeness; .* or a gallery in a folder"):
        Gallery.create(where, Settings(SPACE, "likeness", threshold=0.5, weights=learned))
    with pytest.raises(InputError, match="there is no gallery here"):
        Gallery.open(where)
    with pytest.raises(InputError, match="no name of a collection"):
        Gallery.open(f"{where}#a-b")
    with pytest.raises(RuntimeFailure, match="Milvus: Fail connecting"):
        Gallery.open("http://127.0.0.1:1")
    opened = Gallery.create(where, Settings(SPACE, threshold=0.5))
    with opened as gallery, pytest.raises(InputError, match="pooling"):
        gallery.configure(pooling="mean")


def test_which_places_are_milvus():
    for where in ("http://host:19530", "https://host#door", "tcp://host:1", "door.db", "a/b.db#x"):
        assert is_milvus(where)
    for where in ("door", "a.db/door", "/srv/door", "C:/door"):
        assert not is_milvus(where)


@pytest.mark.slow
def test_a_hundred_thousand_vectors(tmp_path):
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((100_000, 32)).astype(np.float32)
    names = [f"p{i}" for i in range(len(vectors))]
    queries = vectors[[0, 99_999, 50_000]] + np.float32(0.1)
    found = []
    for gallery in both(tmp_path):
        with gallery:
            gallery.enrol_many(names, vectors)
            gallery.remove("p50000")
            found.append(gallery.identify(queries))
            assert len(gallery.people()) == 99_999
    for ours, theirs in zip(*found, strict=True):
        assert [c.name for c in ours.candidates] == [c.name for c in theirs.candidates]
        assert ours.name == theirs.name
    assert [f.name for f in found[0]][:2] == ["p0", "p99999"]
    assert found[0][2].candidates[0].name != "p50000"
