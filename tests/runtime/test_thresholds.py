"""ROC, EER, TAR at FAR and folds against counting by hand."""

import numpy as np
import pytest

from edgecv.errors import InputError
from edgecv.evaluate.faces import read_pairs
from edgecv.gallery.folds import deal, fold_hits
from edgecv.gallery.metrics import accepts
from edgecv.gallery.thresholds import at_far, most_accurate, roc


def count(scores, same, threshold, metric):
    accepted = np.array([accepts(metric, s, threshold) for s in scores])
    return accepted[~same].mean(), accepted[same].mean(), (accepted == same).mean()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_every_point_of_the_roc_is_what_counting_gives(metric):
    rng = np.random.default_rng(0)
    same = rng.random(200) < 0.4
    scores = (rng.random(200) * 0.7 + 0.2 * same).round(2)  # ties, within and across kinds
    scores = scores if metric == "cosine" else 1 - scores
    curve = roc(scores, same, metric)
    assert len(curve.thresholds) == len(np.unique(scores)) + 1
    for i, threshold in enumerate(curve.thresholds):
        far, tar, accuracy = count(scores, same, threshold, metric)
        assert (curve.far[i], curve.tar[i]) == (far, tar)
        assert curve.accuracy[i] == pytest.approx(accuracy, abs=1e-12)
    for far in (0, 0.01, 0.1, 0.5):
        chosen = at_far(curve, far)
        measured = count(scores, same, chosen.threshold, metric)
        assert measured[0] == chosen.far <= far
        assert measured[1] == chosen.tar == curve.tar_at(far) == curve.tar[curve.far <= far].max()
    best = most_accurate(curve)
    assert best.accuracy == pytest.approx(curve.accuracy.max(), abs=1e-12)
    assert count(scores, same, best.threshold, metric)[2] == pytest.approx(best.accuracy)


def test_the_corners_are_the_curve():
    rng = np.random.default_rng(1)
    same = rng.random(300) < 0.4
    curve = roc(rng.random(300) * 0.7 + 0.3 * same, same)
    kept = curve.corners()
    assert len(kept["far"]) < 0.7 * len(curve.far)
    area = (np.diff(kept["far"]) * (np.array(kept["tar"][1:]) + kept["tar"][:-1]) / 2).sum()
    assert area == pytest.approx(curve.auc, abs=1e-12)
    points = set(zip(curve.thresholds, curve.far, curve.tar, strict=True))
    assert set(zip(kept["threshold"], kept["far"], kept["tar"], strict=True)) < points
    assert (kept["far"][0], kept["tar"][0], kept["far"][-1], kept["tar"][-1]) == (0, 0, 1, 1)
    assert roc([0.9, 0.1], [True, False]).corners()["tar"] == [0, 1, 1]


def test_the_eer_is_where_the_errors_cross():
    # 1 of 4 of one person below, 1 of 4 of two above, between 0.4 and 0.6
    scores = [0.9, 0.8, 0.7, 0.3, 0.75, 0.2, 0.1, 0.0]
    assert roc(scores, [True] * 4 + [False] * 4).eer == 0.25
    assert roc([0.9, 0.1], [True, False]).eer == 0.0
    assert roc([0.1, 0.9], [True, False]).eer == 1.0
    assert roc([0.5, 0.5], [True, False]).eer == 0.5  # one score for all: on the line between


def test_a_threshold_lies_in_the_middle_of_its_gap():
    curve = roc([0.9, 0.8, 0.4, 0.3], [True, True, False, False])
    chosen = at_far(curve, 0.001)
    assert chosen.threshold == most_accurate(curve).threshold == pytest.approx(0.6)
    assert (chosen.far, chosen.tar, chosen.accuracy) == (0.0, 1.0, 1.0)
    # none of 2 accepted: the rate at which that happens with probability 0.05 is 1 - sqrt(0.05)
    assert chosen.far_bound == pytest.approx(1 - 0.05**0.5, abs=1e-6)


def test_the_bound_on_far_is_clopper_and_pearsons():
    rng = np.random.default_rng(0)
    same = np.arange(1100) < 100
    scores = np.where(same, 0.9, rng.random(1100) * 0.5)
    scores[[200, 300, 400]] = 0.95
    chosen = at_far(roc(scores, same), 0.003)
    assert chosen.far == 0.003
    # the 95% point of Beta(4, 997), as scipy.stats gives it
    assert chosen.far_bound == pytest.approx(0.007735, abs=5e-6)


def test_bad_pairs_are_refused():
    with pytest.raises(InputError, match="pairs of one person and pairs of two"):
        roc([0.1, 0.2], [True, True])
    with pytest.raises(InputError, match="NaN"):
        roc([0.1, np.nan], [True, False])
    with pytest.raises(InputError, match="one score and one label"):
        roc([0.1], [True, False])
    curve = roc([0.1, 0.9], [True, False])
    with pytest.raises(InputError, match="accepts anybody"):
        at_far(curve, 0.0)
    with pytest.raises(InputError, match="from 0 to below 1"):
        at_far(curve, 1.5)


def test_no_pair_helps_to_choose_the_threshold_that_judges_it():
    same = np.arange(40) < 20
    scores = np.where(same, 0.8, 0.2)
    scores[3] = 0.1  # one of one person that no sensible threshold accepts
    folds = deal(same)
    assert np.bincount(folds[same]).tolist() == np.bincount(folds[~same]).tolist() == [2] * 10
    hits, thresholds = fold_hits(scores, same, folds)
    assert len(thresholds) == 10
    assert np.flatnonzero(~hits).tolist() == [3]
    assert 0.4 < min(thresholds) <= max(thresholds) < 0.6
    # changing a fold's own scores does not move its threshold
    changed = scores.copy()
    changed[folds == 0] = 0.5
    assert fold_hits(changed, same, folds)[1][0] == thresholds[0]
    with pytest.raises(InputError, match="at least 2 pairs"):
        deal(np.array([True, False, False]))


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_pairs_of_a_csv_file(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    path = tmp_path / "pairs.csv"
    path.write_text(
        "file_x,file_y,Decision\na.jpg,b.jpg,Yes\na.jpg,c.jpg,no\nb.jpg,a.jpg,1\nb.jpg,c.jpg,0\n"
    )
    pairs = read_pairs(path)
    assert [p.name for p in pairs.pictures] == ["a.jpg", "b.jpg", "c.jpg"]
    assert pairs.left.tolist() == [0, 0, 1, 1]
    assert pairs.right.tolist() == [1, 2, 0, 2]
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.folds.tolist() == [0, 0, 1, 1]
    for text, message in [
        ("x,y,z\na.jpg,b.jpg,maybe\n", "line 2: expected two file names and yes or no"),
        ("x,y,z\n", "no pairs"),
        ("a.jpg,b.jpg,yes\na.jpg,c.jpg,no\n", "line 1 is a pair; expected a header"),
        ("x,y,z\na.jpg,nobody.jpg,yes\n", "1 of 2 pictures are not there, such as .*nobody.jpg"),
        ("hello", "expected a CSV file"),
        ("", "expected a CSV file"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_pairs(path)


def test_pairs_of_lfw_keep_their_folds(tmp_path):
    touch(tmp_path, "A/A_0001.jpg", "A/A_0002.jpg", "B/B_0001.jpg", "B/B_0012.jpg")
    path = tmp_path / "pairs.txt"
    path.write_text("2 1\nA\t1\t2\nA\t1\tB\t1\nB\t1\t12\nA\t2\tB\t12\n")
    pairs = read_pairs(path)
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.folds.tolist() == [0, 0, 1, 1]
    assert pairs.pictures[pairs.right[2]].name == "B_0012.jpg"
    path.write_text("2 2\nA\t1\t2\n")
    with pytest.raises(InputError, match="promises 8 pairs, 1 came"):
        read_pairs(path)
