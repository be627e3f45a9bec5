"""predict on videos and pictures in one go: order, saved drawings, Ctrl-C, what is not there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecv.measure.ready import READY_MODEL

cv2 = pytest.importorskip("cv2")

COMMAND = [str(Path(sys.executable).parent / "edgecv"), "predict", str(READY_MODEL)]


def video(path, frames=10, size=(64, 48)):
    """Frames that grow brighter, 5 a second."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, size)
    assert writer.isOpened()
    for index in range(frames):
        writer.write(np.full((size[1], size[0], 3), 10 + index * 20 % 240, np.uint8))
    writer.release()
    return path


def run(*arguments, code=0):
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_pictures_and_videos_are_answered_in_order_and_saved(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    Image.new("RGB", (30, 20), "blue").save(tmp_path / "c.png")
    video(tmp_path / "b.avi")
    (tmp_path / "notes.txt").write_text("no picture")
    saved = tmp_path / "out"
    done = run(tmp_path, "--json", "--save", saved)
    data = json.loads(done.stdout)
    order = [(Path(r["source"]).name, r.get("frame")) for r in data["results"]]
    assert order == [("a.png", None), *(("b.avi", i) for i in range(10)), ("c.png", None)]
    assert data["results"][5]["seconds"] == pytest.approx(0.8)
    assert data["left_out"] == 1
    assert "left out 1 files" in done.stderr
    lines = [json.loads(line) for line in (saved / "results.jsonl").read_text().splitlines()]
    assert lines == data["results"]
    capture = cv2.VideoCapture(str(saved / "b.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 10
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(5)


def test_a_broken_video_does_not_stop_the_others(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    good = video(tmp_path / "good.avi", 2)
    done = run(tmp_path / "broken.mp4", tmp_path / "absent.mp4", good, "--json", code=2)
    data = json.loads(done.stdout)
    assert "cannot read this video" in data["failed"][0]["error"]
    assert "no such file" in data["failed"][1]["error"]
    assert len(data["results"]) == 2


def test_a_video_that_is_cut_off_gives_what_is_left_and_says_so(tmp_path):
    whole = video(tmp_path / "whole.avi", 60, (320, 240)).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    done = subprocess.run(
        [*COMMAND, str(tmp_path / "cut.avi"), "--json"], capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    count = len(json.loads(done.stdout)["results"])
    assert count < 60
    assert count == 0 or "cut off or damaged" in done.stderr or done.returncode == 0


def test_a_camera_that_is_not_there_is_an_error(tmp_path):
    done = run("camera:97", "--json", code=2)
    assert "camera:97 could not be opened" in json.loads(done.stdout)["failed"][0]["error"]


def test_ctrl_c_keeps_what_is_done(tmp_path):
    clip = video(tmp_path / "long.avi", 1500, (320, 240))
    saved = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, str(clip), "--json", "--save", str(saved)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = saved / "results.jsonl"
    for _ in range(600):
        if lines.is_file() and lines.stat().st_size > 1000:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    data = json.loads(out)
    assert data["interrupted"] is True
    kept = [json.loads(line) for line in lines.read_text().splitlines()]
    assert 0 < len(kept) < 1500
    assert data["results"] == kept[: len(data["results"])]
    assert len(kept) - len(data["results"]) <= 1
    assert cv2.VideoCapture(str(saved / "long.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) > 0
