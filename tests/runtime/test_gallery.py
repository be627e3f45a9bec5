"""The gallery: decisions, files, crashes at every point, several writers and readers."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from edgecv.errors import InputError
from edgecv.gallery import Gallery, Settings, Space
from edgecv.gallery.lock import lock
from edgecv.gallery.search import BLOCK
from edgecv.gallery.tensorfile import read_tensors
from edgecv.spec import Decoding, ModelSpec, Preparation, TensorSpec

SPACE = Space("a" * 64, 4)
E = np.eye(4, dtype=np.float32)


def made(path, **settings):
    return Gallery.create(path, Settings(SPACE, **{"threshold": 0.5, **settings}))


@pytest.fixture
def gallery(tmp_path):
    with made(tmp_path / "door") as opened:
        yield opened


# --- decisions ---------------------------------------------------------------------------------


def test_one_picture_enrols_a_person(gallery):
    assert str(gallery.identify(E[0])[0]) == "not recognized (empty gallery)"
    gallery.enrol("anna", E[0])
    gallery.enrol("bo", E[1])
    (found,) = gallery.identify(E[0] + 0.1)
    assert (found.name, found.reason) == ("anna", "recognized")
    assert [c.name for c in found.candidates] == ["anna", "bo"]
    (nobody,) = gallery.identify(E[3])
    assert (nobody.name, nobody.reason) == (None, "below threshold")
    assert [f.name for f in gallery.identify(E[[1, 0]])] == ["bo", "anna"]
    assert json.loads(json.dumps(found.to_dict()))["candidates"][0]["name"] == "anna"
    assert gallery.verify("anna", E[0]).same
    assert not gallery.verify("bo", E[0]).same


def test_the_margin_refuses_who_could_be_another(gallery):
    gallery.enrol("anna", E[0])
    gallery.enrol("bo", [1, 0.2, 0, 0])
    assert gallery.identify(E[0])[0].name == "anna"
    lead = 1 - 1 / np.sqrt(1.04)
    gallery.configure(margin=lead + 1e-4)
    (found,) = gallery.identify(E[0])
    assert (found.name, found.reason) == (None, "ambiguous")
    assert "ambiguous: anna 1.000, bo 0.981" in str(found)
    gallery.configure(margin=lead - 1e-4)
    assert gallery.identify(E[0])[0].name == "anna"


def test_the_second_picture_of_the_best_person_is_not_the_second_best(gallery):
    gallery.enrol("anna", np.tile(E[0], (70, 1)))  # more than are fetched at first
    gallery.enrol("bo", [1, 0.2, 0, 0])
    (found,) = gallery.identify(E[0])
    assert [c.name for c in found.candidates] == ["anna", "bo"]


@pytest.mark.parametrize("metric", ["euclidean", "squared-euclidean", "chi-square"])
def test_distances_decide_the_other_way_round(tmp_path, metric):
    weights = (1.0, 1.0, 1.0, 2.0) if metric == "chi-square" else None
    gallery = made(tmp_path / "g", metric=metric, threshold=1.0, margin=0.1, weights=weights)
    gallery.enrol("anna", E[0])
    gallery.enrol("bo", E[1])
    (found,) = gallery.identify(E[0] * 0.9)
    assert found.name == "anna"
    assert found.candidates[0].score < found.candidates[1].score
    assert gallery.identify(E[3])[0].name is None
    assert gallery.verify("anna", E[0]).score == 0
    assert not gallery.verify("anna", E[3]).same


def test_best_and_mean_of_several_pictures(tmp_path):
    pictures = np.array([[1, 0, 0, 0], [0, 3, 0, 0]], np.float32)
    for pooling, expected in (("best", 1.0), ("mean", 2**-0.5)):
        gallery = made(tmp_path / pooling, pooling=pooling)
        gallery.enrol("anna", pictures[0])
        gallery.enrol("bo", E[2])
        gallery.enrol("anna", pictures[1], extend=True)
        assert gallery.people() == {"anna": 2, "bo": 1}
        assert gallery.identify(E[0])[0].score == pytest.approx(expected, abs=1e-6)
        assert gallery.verify("anna", E[0]).score == pytest.approx(expected, abs=1e-6)
        other = {"best": "mean", "mean": "best"}[pooling]
        gallery.configure(pooling=other)  # all vectors are kept, so it can be changed
        assert gallery.identify(E[0])[0].score == pytest.approx(1.0 + 2**-0.5 - expected, abs=1e-6)
        gallery.remove("anna")
        assert gallery.people() == {"bo": 1}
    with pytest.raises(InputError, match="cancel out"):
        gallery.configure(pooling="mean") and gallery.enrol("carl", [E[0], -E[0]])
    assert gallery.people() == {"bo": 1}


def test_a_mean_that_somebody_does_not_have_is_refused_and_the_gallery_stays_open(gallery):
    gallery.enrol("anna", [E[0], -E[0]])
    with pytest.raises(InputError, match="cancel out"):
        gallery.configure(pooling="mean")
    with Gallery.open(gallery.engine.where) as again:
        assert again.settings.pooling == "best"
        assert again.identify(E[0])[0].name == "anna"


def test_bad_input_is_refused_and_changes_nothing(gallery):
    gallery.enrol("anna", E[0])
    for call, message in [
        (lambda: gallery.enrol("anna", E[1]), "'anna' is enrolled already"),
        (lambda: gallery.enrol("bo", E[0][:3]), "expected 4 values per vector, got 3"),
        (lambda: gallery.enrol("bo", np.zeros((0, 4))), "at least one vector"),
        (lambda: gallery.enrol("bo", np.full(4, np.nan)), "NaN"),
        (lambda: gallery.enrol("", E[0]), "is no name"),
        (lambda: gallery.enrol(" bo", E[0]), "is no name"),
        (lambda: gallery.enrol("b\0o", E[0]), "is no name"),
        (lambda: gallery.enrol("b" * 300, E[0]), "longer than 200 bytes"),
        (lambda: gallery.enrol_many(["bo"], E), "one name per vector, got 1 for 4"),
        (lambda: gallery.enrol_many(["bo", "anna"], E[:2]), "'anna' is enrolled already"),
        (lambda: gallery.verify("bo", E[0]), "nobody is enrolled as 'bo'"),
        (lambda: gallery.verify("anna", E[:2]), "expected one vector"),
        (lambda: gallery.remove("anna", "bo"), "nobody is enrolled as 'bo'"),
        (lambda: gallery.remove(), "at least one name"),
        (lambda: gallery.identify(E[0], top=0), "at least 1, got 0"),
        (lambda: gallery.configure(metric="euclidean"), "metric cannot be changed"),
        (lambda: gallery.configure(threshold=2.0), "from -1 to 1"),
        (lambda: gallery.configure(margin=-1.0), "margin"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
    assert gallery.people() == {"anna": 1}
    gallery.configure(threshold=None)
    with pytest.raises(InputError, match="has no threshold"):
        gallery.identify(E[0])


def test_a_name_typed_on_another_system_is_the_same(gallery):
    gallery.enrol("Jose\u0301", E[0])  # decomposed, as macOS gives file names
    assert gallery.verify("Jos\u00e9", E[0]).same
    with pytest.raises(InputError, match="enrolled already"):
        gallery.enrol("Jos\u00e9", E[1])


# --- whose vectors -----------------------------------------------------------------------------


def spec(**changes):
    base = ModelSpec(
        name="net",
        task="embed",
        inputs=(TensorSpec("input", (1, 3, 8, 8)),),
        outputs=(TensorSpec("embedding", (1, 4)),),
        preparation=Preparation(8, 8, fit="stretch"),
        decoding=Decoding("embedding", {"normalize": True}),
        labels=(),
        provenance={"weights": {"sha256": "a" * 64, "origin": "file"}},
    )
    return replace(base, **changes)


def test_the_int8_file_of_a_net_shares_its_space_and_another_net_does_not(tmp_path):
    space = Space.of(spec(), "arcface-5-112")
    Gallery.create(tmp_path / "g", Settings(space, threshold=0.4)).enrol("anna", E[0])
    int8 = spec(name="net-int8", precision="int8", target="onnxruntime-x86")
    uint8 = spec(inputs=(TensorSpec("input", ("N", 8, 8, 3), "uint8"),),
                 preparation=Preparation(8, 8, fit="stretch", layout="nhwc"))  # fmt: skip
    for same in (int8, uint8):
        opened = Gallery.open(tmp_path / "g", Space.of(same, "arcface-5-112"))
        assert opened.identify(E[0])[0].name == "anna"
    for other, alignment, message in [
        (spec(provenance={"weights": {"sha256": "b" * 64}}), "arcface-5-112", "weights aaaaaaaa"),
        (spec(preparation=Preparation(8, 8, fit="crop")), "arcface-5-112", "preparation"),
        (spec(), None, "alignment arcface-5-112 here, None in the model"),
        (spec(outputs=(TensorSpec("embedding", (1, 8)),)), "arcface-5-112", "dimension 4 here, 8"),
    ]:
        with pytest.raises(InputError, match=message):
            Gallery.open(tmp_path / "g", Space.of(other, alignment))
    with pytest.raises(InputError, match="does not say which weights"):
        Space.of(spec(provenance={}))


# --- files -------------------------------------------------------------------------------------


def segments(folder):
    return sorted(p.name for p in folder.iterdir() if p.suffix == ".safetensors")


def test_a_gallery_is_json_and_safetensors(tmp_path):
    gallery = made(tmp_path / "door")
    gallery.enrol("anna", [E[0], E[1] * 7])
    gallery.enrol("bo", E[2])
    data = json.loads((tmp_path / "door" / "gallery.json").read_text())
    assert (data["format"], data["version"], data["min_reader"]) == ("edgecv.gallery", 1, 1)
    assert [s["count"] for s in data["segments"]] == [3]  # small segments are joined
    assert segments(tmp_path / "door") == [data["segments"][0]["file"]]
    tensors, metadata = read_tensors(tmp_path / "door" / data["segments"][0]["file"])
    assert np.array_equal(tensors["vectors"], [E[0], E[1] * 7, E[2]])  # as given, not scaled
    assert metadata["format"] == "edgecv.gallery"


def test_many_people_over_several_segments(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2 * BLOCK + 10, 4)).astype(np.float32)
    names = [f"person {i}" for i in range(len(vectors))]
    gallery = made(tmp_path / "g")
    gallery.enrol_many(names, vectors)
    gallery.enrol("last", [0, 0, 0, 1.0])
    assert len(segments(tmp_path / "g")) == 3
    for i in (0, BLOCK, 2 * BLOCK + 9):
        assert gallery.verify(names[i], vectors[i]).score == pytest.approx(1.0, abs=1e-6)
    assert gallery.remove(names[0], names[BLOCK], "last") == 3
    again = Gallery.open(tmp_path / "g")
    assert list(again.people()) == sorted(set(names) - {names[0], names[BLOCK]})
    gallery.remove(*names[1:BLOCK])  # a whole segment
    assert len(segments(tmp_path / "g")) == 2


def test_removing_leaves_no_vector_on_the_disk(tmp_path):
    """Looked for as bytes in every file, and in the blocks of the file that was replaced."""
    gallery = made(tmp_path / "g")
    secret = np.array([0.123, 4.567, 8.9, 1.011], np.float32)
    gallery.enrol("bo", E[0])
    gallery.enrol("anna", secret)
    (name,) = segments(tmp_path / "g")
    os.link(tmp_path / "g" / name, tmp_path / "kept")  # the same blocks under a second name
    assert secret.tobytes() in (tmp_path / "kept").read_bytes()
    gallery.remove("anna")
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 4  # the JSON, the lock, the new segment, and "kept"
    for path in files:
        assert secret.tobytes() not in path.read_bytes()
        assert b"anna" not in path.read_bytes()
    assert not any((tmp_path / "kept").read_bytes())
    assert gallery.identify(E[0])[0].name == "bo"


@pytest.mark.parametrize("pooling", ["best", "mean"])
def test_an_open_gallery_sees_changes_within_a_second(tmp_path, pooling):
    writer = made(tmp_path / "g", pooling=pooling)
    writer.enrol("anna", E[0])
    with Gallery.open(tmp_path / "g") as reader:
        assert reader.identify(E[1])[0].name is None
        for change, expected in [
            (lambda: writer.enrol("bo", E[1]), "bo"),
            (lambda: writer.remove("bo"), None),
            (lambda: writer.enrol("carl", E[1]), "carl"),
            (lambda: writer.configure(margin=3.0), None),
        ]:
            change()
            done = time.monotonic()
            while reader.identify(E[1])[0].name != expected:
                assert time.monotonic() - done < 1
                time.sleep(0.01)
        assert reader.people() == {"anna": 1, "carl": 1}


def test_cut_off_and_damaged_files_are_named(tmp_path):
    gallery = made(tmp_path / "g")
    gallery.enrol("anna", E[0])
    (name,) = segments(tmp_path / "g")
    for file in (tmp_path / "g" / name, tmp_path / "g" / "gallery.json"):
        whole = file.read_bytes()
        for size in {0, 5, 9, len(whole) // 2, len(whole) - 1}:
            file.write_bytes(whole[:size])
            # one byte less of the JSON is its last line break
            if not (file.suffix == ".json" and size == len(whole) - 1):
                with pytest.raises(InputError, match=file.name):
                    Gallery.open(tmp_path / "g")
        file.write_bytes(whole)
    data = bytearray((tmp_path / "g" / name).read_bytes())
    data[-1] ^= 1  # a letter of the name
    (tmp_path / "g" / name).write_bytes(data)
    with pytest.raises(InputError, match=r"damaged: it is not what gallery.json says"):
        Gallery.open(tmp_path / "g")
    (tmp_path / "g" / name).unlink()
    with pytest.raises(InputError, match="no such file"):
        Gallery.open(tmp_path / "g")


def test_what_is_no_gallery_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no gallery here"):
        Gallery.open(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be"):
        made(tmp_path / "file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(InputError, match=r"other files in this folder, such as a.jpg"):
        made(tmp_path / "photos")
    made(tmp_path / "g")
    with pytest.raises(InputError, match="there is a gallery in this folder already"):
        made(tmp_path / "g")
    path = tmp_path / "g" / "gallery.json"
    good = json.loads(path.read_text())
    for change, message in [
        ({"min_reader": 9}, "readers of version 9"),
        ({"format": "zip"}, "not a gallery's"),
        ({"segments": [{"file": "../x.safetensors", "count": 1, "crc32": 0}]}, "list of segments"),
        ({"settings": {}}, "settings are damaged"),
        ({"new_key_of_a_later_version": 1}, None),
    ]:
        path.write_text(json.dumps(good | change))
        if message:
            with pytest.raises(InputError, match=message):
                Gallery.open(tmp_path / "g")
        else:
            assert Gallery.open(tmp_path / "g").people() == {}


# --- several processes -------------------------------------------------------------------------


def test_writers_wait_for_each_other_and_lose_nothing(tmp_path):
    made(tmp_path / "g")
    errors = []

    def enrol(worker):
        try:
            with Gallery.open(tmp_path / "g") as mine:
                for i in range(8):
                    mine.enrol(f"{worker} {i}", E[worker])
                mine.remove(f"{worker} 0")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=enrol, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(Gallery.open(tmp_path / "g").people()) == 28


def test_a_lock_that_is_held_is_an_error_in_the_end(tmp_path):
    held, second = lock(tmp_path / ".lock", 0), lock(tmp_path / ".lock", 0.05)
    with held, pytest.raises(InputError, match="another process"), second:
        pass
    with lock(tmp_path / ".lock", 0):
        pass


# Does the same to a gallery over and over, says what is done, and ends at the nth step of a write
# (0: never), as a power cut would: without any clean-up.
CHILD = """
import os, sys
from pathlib import Path
import numpy as np
from edgecv.gallery import Gallery
folder, stop = sys.argv[1], int(sys.argv[2])
steps = 0
def counted(function):
    def call(*args, **kwargs):
        global steps
        steps += 1
        if steps == stop:
            os._exit(9)
        return function(*args, **kwargs)
    return call
os.fsync, Path.replace, Path.unlink = map(counted, (os.fsync, Path.replace, Path.unlink))
def work(i):
    person = np.eye(4)[[0, 1]] + i
    print("start add", i, flush=True)
    gallery.enrol(f"p{i}", person)
    print("done add", i, flush=True)
    if i % 2:
        print("start remove", i - 1, flush=True)
        gallery.remove(f"p{i - 1}")
        print("done remove", i - 1, flush=True)
with Gallery.open(folder) as gallery:
    for i in range(int(sys.argv[3])):
        work(i)
print("end")
"""


def crash(folder, stop, count, kill_after=None):
    """Run :data:`CHILD`; returns how many vectors each name must have: 2, 0, or None for either."""
    command = [sys.executable, "-c", CHILD, str(folder), str(stop), str(count)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if kill_after is not None:
        first = child.stdout.readline()  # it is at work: the imports are behind it
        time.sleep(kill_after)
        child.kill()
        said = first + child.communicate()[0]
    else:
        said = child.communicate()[0]
    # killed within a line it has said half of it: what it was about to start has not begun, and
    # what it has done stands as started
    lines = said[: said.rfind("\n") + 1].splitlines()
    state = {}
    for line in lines:
        word, verb, number = line.split() if line != "end" else ("end", "", "")
        if word != "end":
            state[f"p{number}"] = {"start": None, "done": 2 if verb == "add" else 0}[word]
    return state, "end" in lines


def check_after_crash(folder, state):
    with Gallery.open(folder) as gallery:  # also erases what was left behind
        people = gallery.people()
        for name, count in people.items():
            assert count == 2  # both vectors or none
            assert state[name] in (None, 2)
        assert {name for name, count in state.items() if count == 2} <= people.keys()
        for name in people:
            i = int(name[1:])
            assert gallery.verify(name, np.eye(4)[0] + i).score == pytest.approx(1, abs=1e-6)
        listed = {s["file"] for s in json.loads((folder / "gallery.json").read_text())["segments"]}
        assert set(segments(folder)) == listed
        assert not list(folder.glob(".edgecv-*"))
        gallery.enrol("after", E[3])  # and the lock is free


def test_a_process_that_ends_at_any_step_of_a_write_leaves_a_whole_gallery(tmp_path):
    for stop in range(1, 200):
        folder = tmp_path / str(stop)
        made(folder)
        state, ended = crash(folder, stop, 2)
        check_after_crash(folder, state)
        if ended:
            break
    # two additions and a removal: each step of each of their files was a place to end
    assert 10 < stop < 60


def test_a_process_killed_at_a_random_moment_leaves_a_whole_gallery(tmp_path):
    rng = random.Random(0)
    made(tmp_path / "g")
    for round_ in range(8):
        folder = tmp_path / f"g{round_}"
        made(folder)
        state, ended = crash(folder, 0, 10_000, kill_after=rng.random() * 0.1)
        assert not ended
        check_after_crash(folder, state)


def test_who_reads_while_others_write_sees_one_moment(tmp_path):
    """Segments are wiped under readers' feet all the time; none may notice."""
    writer = made(tmp_path / "g")
    writer.enrol("anna", E[0])
    stop = threading.Event()
    errors, seen = [], 0

    def churn():
        try:
            for i in range(10_000):
                if stop.is_set():
                    return
                writer.enrol(f"p{i}", E[1] + i)
                if i % 3 == 2:
                    writer.remove(f"p{i - 1}", f"p{i}")
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            with Gallery.open(tmp_path / "g") as reader:
                assert reader.identify(E[0])[0].name == "anna"
                assert "anna" in reader.people()
                seen += 1
    finally:
        stop.set()
        thread.join()
    assert not errors
    assert seen > 5
