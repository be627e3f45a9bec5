"""Sources of predict: files, folders, cameras; a camera's frames; drawings; JSON."""

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgecv
from edgecv.errors import BackendUnavailable, InputError
from edgecv.measure.ready import READY_MODEL
from edgecv.results import Classification, Detections, Embedding, Landmarks, Segmentation
from edgecv.workflows.drawing import color_of, draw, text_color
from edgecv.workflows.predict import Prediction, predict
from edgecv.workflows.saving import LINES, Saver, saved_names
from edgecv.workflows.sources import Source, find_sources
from edgecv.workflows.video import file_frames, live_frames, open_camera


def picture(name):
    return Source("picture", name)


def test_every_source_gets_a_name_of_its_own():
    names = saved_names(
        [picture(p) for p in ("a/x.png", "b/x.png", "x.bmp", "x-1.png", "y.JPG", "x.gif")]
        + [Source("video", "x.avi"), Source("video", "b/x.mp4"), Source("camera", "0")]
    )
    assert names[:6] == ["x.png", "x-1.png", "x-2.png", "x-1-1.png", "y.JPG", "x-3.png"]
    assert names[6:] == ["x.mp4", "x-1.mp4", "camera-0.mp4"]


def test_a_folder_stands_for_its_pictures_and_videos_and_says_what_it_left_out(tmp_path):
    for name in ("b.png", "a.jpg", "notes.txt", "clip.MP4", ".hidden.png", "sub/c.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found, others = find_sources([tmp_path, "named.txt", "camera:1", "camera:csi"])
    assert [Path(s.name).name for s in found[:4]] == ["a.jpg", "b.png", "clip.MP4", "c.png"]
    assert [s.kind for s in found] == [*["picture"] * 2, "video", *["picture"] * 2, *["camera"] * 2]
    assert [str(s) for s in found[4:]] == ["named.txt", "camera:1", "camera:csi"]
    assert [path.name for path in others] == ["notes.txt"]


def test_drawings_of_another_time_are_no_sources(tmp_path, monkeypatch):
    for name in ("a.png", "out/a.png", "out/sub/b.png", "output/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)

    def names(folder, saved):
        return [Path(s.name).as_posix() for s in find_sources([folder], saved)[0]]

    assert names(".", Path("out")) == ["a.png", "output/c.png"]
    assert names(tmp_path, Path("out")) == [str(tmp_path / n) for n in ("a.png", "output/c.png")]
    assert len(names("out", Path("out"))) == 2  # named itself: saving there is refused
    assert len(names(".", None)) == len(names(".", tmp_path.parent)) == 4


def test_folders_of_text_and_unknown_cameras_are_errors(tmp_path):
    (tmp_path / "only.txt").touch()
    with pytest.raises(InputError, match=r"no pictures or videos .* only other files .* only.txt"):
        find_sources([tmp_path])
    for name in ("front", "", "-1", "9" * 20):
        with pytest.raises(InputError, match="expected camera:0"):
            find_sources([f"camera:{name}"])


def test_the_pi_camera_without_its_library_says_how_to_get_it():
    with pytest.raises(BackendUnavailable, match="python3-picamera2"):
        open_camera("csi")


class FakeCamera:
    """Gives ``count`` frames, one each ``period`` seconds; the value of a frame is its number."""

    def __init__(self, count, period):
        self.count, self.period, self.given, self.closed = count, period, 0, False
        self.third = threading.Event()

    def read(self):
        time.sleep(self.period)
        if self.given >= self.count:
            raise OSError("device is gone")
        self.given += 1
        if self.given > 3:
            self.third.set()
        return np.full((2, 2, 3), self.given - 1, np.uint8)

    def close(self):
        self.closed = True


def test_stale_frames_are_dropped_and_none_is_given_twice():
    camera = FakeCamera(count=40, period=0.002)
    frames = live_frames(camera, "camera:0", patience_s=5)
    first, _ = next(frames)
    camera.third.wait(5)  # the model is busy while at least three more come
    second, dropped = next(frames)
    assert second.index > first.index + 1
    assert dropped == second.index - first.index - 1 + first.index
    assert second.pixels[0, 0, 0] == second.index
    seen = [first.index, second.index]
    with pytest.raises(InputError, match=r"camera:0: no frame .* after .*device is gone"):  # noqa: PT012
        for frame, _ in frames:
            seen += [frame.index]
    assert seen == sorted(set(seen))
    assert camera.closed


def test_a_video_whose_decoder_fails_ends_and_does_not_hang(tmp_path, monkeypatch):
    class Broken(FakeCamera):
        fps, count = 25.0, 9

        def __init__(self, path):
            super().__init__(3, 0)
            Broken.last = self

    monkeypatch.setattr("edgecv.workflows.video.OpenCvCapture", Broken)
    (tmp_path / "clip.mp4").touch()
    frames = file_frames(tmp_path / "clip.mp4")
    assert [next(frames)[0].index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match=r"clip\.mp4: broken after 3 frames \(device is gone\)"):
        next(frames)
    assert Broken.last.closed


def test_a_camera_is_closed_with_its_iterator():
    camera = FakeCamera(count=10**6, period=0.001)
    frames = live_frames(camera, "camera:0")
    next(frames)
    frames.close()
    assert camera.closed


BOXES = Detections(
    np.array([[10, 10, 60, 50], [12, 11, 61, 52], [-5, -5, 400, 300]], np.float32),
    np.array([0.9, 0.8, 0.7], np.float32),
    np.array([0, 1, 2]),
    ("a very long name of a class that does not fit in", "b", "c"),
    np.full((3, 5, 2), 20, np.float32),
)
RESULTS = [
    Classification(np.array([0.75, 0.25], np.float32), ("cat", "dog")),
    BOXES,
    Embedding(np.ones(4, np.float32)),
    Segmentation(np.arange(80 * 100).reshape(80, 100) % 3, ("sky", "road", "car")),
    Landmarks(np.array([[3, 4], [50, 60]], np.float32)),
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("level", [0, 255])
def test_drawings_change_the_picture_and_leave_the_original_alone(result, level):
    plain = Image.new("RGB", (100, 80), (level,) * 3)
    drawn = draw(plain, result)
    assert plain.getextrema() == ((level, level),) * 3
    assert drawn.width == 100
    assert drawn.height >= 80
    changed = np.asarray(drawn)[:80] != level
    # what belongs to all of the picture stands below it: white on black
    below = np.asarray(drawn)[80:]
    assert changed.any() or (below.min() == 0 and below.max() > 200)


def test_text_and_plate_are_always_far_apart_in_brightness():
    """WCAG asks for 4.5 to 1; black or white has at least 4.58 on any colour."""

    def luminance(color):
        parts = [v / 255 for v in color]
        parts = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for index in range(1000):
        plate = color_of(index)
        low, high = sorted((luminance(plate), luminance(text_color(plate))))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_what_is_saved_is_there_line_by_line(tmp_path, picture_file):
    source = picture(str(picture_file))
    saver = Saver(tmp_path / "out", [source])
    with saver:
        saver.save(Prediction(source, RESULTS[0]))
        saver.save(Prediction(source, None, InputError("broken")))
        lines = (tmp_path / "out" / LINES).read_text().splitlines()  # before it is closed
    assert [json.loads(line).get("error") for line in lines] == [None, "broken"]
    assert json.loads(lines[0])["top"][0]["label"] == "cat"
    with Image.open(tmp_path / "out" / "picture.png") as drawn:
        assert drawn.height > 48


def test_masks_are_saved_beside_the_drawings(tmp_path, picture_file):
    second = tmp_path / "b" / "picture-mask.png"
    second.parent.mkdir()
    picture_file.with_name("picture.bmp").write_bytes(picture_file.read_bytes())
    second.write_bytes(picture_file.read_bytes())
    sources = [picture(str(p)) for p in (picture_file, second, tmp_path / "picture.bmp")]
    found = Segmentation(np.arange(48 * 64).reshape(48, 64) % 3, ("sky", "road", "car"))
    with Saver(tmp_path / "out", sources) as saver:
        told = [saver.save(Prediction(source, found)) for source in sources]
        assert "mask" not in saver.save(Prediction(sources[0], RESULTS[0]))
    saved = [Path(one[key]).name for one in told for key in ("saved", "mask")]
    assert saved[::2] == ["picture.png", "picture-mask.png", "picture-1.png"]
    assert saved[1::2] == ["picture-mask-1.png", "picture-mask-mask.png", "picture-1-mask.png"]
    for one in told:
        with Image.open(one["mask"]) as mask:
            np.testing.assert_array_equal(np.asarray(mask), found.mask)
    lines = (tmp_path / "out" / LINES).read_text().splitlines()
    assert [json.loads(line) for line in lines[:3]] == told


def test_a_drawing_never_takes_the_place_of_a_source(tmp_path, picture_file):
    before = picture_file.read_bytes()
    (tmp_path / "linked").symlink_to(picture_file.parent)
    for folder in (picture_file.parent, tmp_path / "linked"):
        with pytest.raises(InputError, match=r"written over the sources .* another folder"):
            Saver(folder, [picture(str(picture_file))])
    clip = Source("video", str(tmp_path / "clip.mp4"))
    with pytest.raises(InputError, match=r"clip\.mp4"):
        Saver(tmp_path, [clip])
    assert not list(tmp_path.rglob(LINES))
    assert picture_file.read_bytes() == before
    Saver(tmp_path / "out", [clip, picture(str(picture_file)), Source("camera", "0")]).close()


def test_without_opencv_a_video_is_refused_before_anything_is_answered(monkeypatch, picture_file):
    monkeypatch.setitem(sys.modules, "cv2", None)  # what import finds where it is not installed
    mixed = [picture(str(picture_file)), Source("video", "clip.mp4")]
    with edgecv.load(READY_MODEL, backend="fake") as model:
        with pytest.raises(BackendUnavailable, match=r"edgecv\[video\]"):
            next(predict(model, mixed))
        assert next(predict(model, mixed[:1])).result is not None


def test_detections_as_coco_and_as_supervisions():
    first, _, third = BOXES.to_coco(7)
    assert first["image_id"] == 7
    assert first["bbox"] == [10, 10, 50, 40]
    assert (third["category_id"], third["bbox"]) == (2, [-5, -5, 405, 305])
    supervision = pytest.importorskip("supervision")
    theirs = BOXES.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    np.testing.assert_array_equal(theirs.xyxy, BOXES.boxes)
    np.testing.assert_array_equal(theirs.class_id, BOXES.classes)
    assert list(theirs.data["class_name"])[1:] == ["b", "c"]
