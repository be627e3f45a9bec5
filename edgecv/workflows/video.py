"""Frames of video files and cameras.

A file is read to its end, every frame in its order. A camera does not wait: it is read by a
thread that keeps the newest frame only, so that an answer is about what is there now, and a slow
model falls behind by a frame and not by a minute.
"""

from __future__ import annotations

import contextlib
import importlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import BackendUnavailable, InputError
from edgecv.workflows.sources import CSI

AHEAD = 4  # frames of a file that are decoded while the model is busy
PATIENCE_S = 5.0  # how long a camera may give nothing before it counts as gone
CSI_SIZE = (1280, 720)


@dataclass(frozen=True, eq=False)
class Frame:
    """``pixels``: uint8 ``[H, W, 3]`` in BGR; ``seconds``: in the video, or since the start."""

    index: int
    seconds: float
    pixels: NDArray[np.uint8]


class Camera(Protocol):
    """What a camera has to do; :func:`live_frames` takes any that does."""

    def read(self) -> NDArray[np.uint8] | None:
        """The next frame, BGR ``[H, W, 3]``; None when there is none."""

    def close(self) -> None:
        """Give the device back."""


class OpenCvCapture:
    """A device ``/dev/videoN``, or a video file, by OpenCV."""

    def __init__(self, target: int | str) -> None:
        self._cv2 = _cv2()
        with _quiet(self._cv2):
            self._capture = self._cv2.VideoCapture(target)
        if not self._capture.isOpened():
            self._capture.release()
            raise _not_opened(target)
        if isinstance(target, int):  # what a driver queues is stale; not every one obeys
            self._capture.set(self._cv2.CAP_PROP_BUFFERSIZE, 1)

    def read(self) -> NDArray[np.uint8] | None:
        with _quiet(self._cv2):
            good, pixels = self._capture.read()
        return pixels if good else None

    @property
    def fps(self) -> float:
        """Frames a second as the file or driver says; 0 where it says nothing of use."""
        value = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        return value if np.isfinite(value) and 0 < value <= 1000 else 0.0

    @property
    def count(self) -> int:
        """Frames in the file as its header says; 0 where it says nothing of use."""
        value = float(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT))
        return int(value) if np.isfinite(value) and value > 0 else 0

    def close(self) -> None:
        self._capture.release()


class CsiCamera:
    """A Raspberry Pi's ribbon-cable camera, by picamera2 (of the system: apt, not pip)."""

    def __init__(self) -> None:
        try:
            picamera2 = importlib.import_module("picamera2")
        except ImportError as error:
            raise BackendUnavailable(
                f"camera:csi needs picamera2, which does not import ({error}): sudo apt install "
                f"python3-picamera2, and a virtual environment made with --system-site-packages"
            ) from error
        try:
            self._camera = picamera2.Picamera2()
            # libcamera names formats by their order in a little-endian word: its RGB888 lies in
            # memory as B, G, R, which is what frames are here
            main = {"format": "RGB888", "size": CSI_SIZE}
            self._camera.configure(self._camera.create_video_configuration(main=main))
            self._camera.start()
        except (IndexError, RuntimeError, OSError) as error:  # IndexError: no camera is attached
            raise InputError(
                f"camera:csi could not be opened ({error}); see `rpicam-hello --list-cameras`, and "
                f"whether another program uses it"
            ) from error

    def read(self) -> NDArray[np.uint8] | None:
        pixels: NDArray[np.uint8] = self._camera.capture_array("main")
        return pixels

    def close(self) -> None:
        self._camera.stop()
        self._camera.close()


def check_library() -> None:
    """A :class:`~edgecv.errors.BackendUnavailable` where videos and cameras need OpenCV first."""
    _cv2()


def open_camera(name: str) -> Camera:
    """The camera of ``camera:NAME``: a number, or ``csi``."""
    return CsiCamera() if name == CSI else OpenCvCapture(int(name))


def file_frames(
    path: Path, note: Callable[[str], None] = lambda text: None
) -> Iterator[tuple[Frame, int, float]]:
    """Every frame of a video, in order; with each the file's frame count and frames a second.

    Both are the header's word, and 0 where it has none. :data:`AHEAD` frames are decoded ahead.
    ``note`` is told when the file ends well before its header says.

    Raises :class:`~edgecv.errors.InputError` where not one frame can be read.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    capture = OpenCvCapture(str(path))
    count, fps = capture.count, capture.fps
    done = 0
    with contextlib.closing(_ReadAhead(capture)) as reader:
        for index, pixels in enumerate(reader):
            yield Frame(index, index / fps if fps else 0.0, pixels), count, fps
            done = index + 1
    if reader.failure is not None:
        raise InputError(f"{path}: broken after {done} frames ({reader.failure})")
    if done == 0:
        raise InputError(f"{path}: not one frame of this video can be read; it is damaged or empty")
    if done < 0.95 * count:  # headers of intact files are off by a few frames
        note(f"{path}: ended after {done} of {count} frames; the file is cut off or damaged")


class _ReadAhead:
    """Iterates over a capture that a thread reads; :meth:`close` ends both. ``failure`` is what
    ended it before its end, if anything did."""

    def __init__(self, capture: Camera) -> None:
        self._capture = capture
        self.failure: Exception | None = None
        self._frames: queue.Queue[NDArray[np.uint8] | None] = queue.Queue(AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        while (pixels := self._frames.get()) is not None:
            yield pixels

    def _read(self) -> None:
        pixels: NDArray[np.uint8] | None
        while True:
            try:
                pixels = None if self._stop.is_set() else self._capture.read()
            except Exception as error:  # whoever waits for a frame has to hear of it
                self.failure, pixels = error, None
            while not self._stop.is_set():
                try:
                    self._frames.put(pixels, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if pixels is None:
                return

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._capture.close()


def live_frames(
    camera: Camera, name: str, patience_s: float = PATIENCE_S
) -> Generator[tuple[Frame, int], None, None]:
    """The newest frame of ``camera`` each time one is asked for; never the same one twice.

    Beside it stands how many were skipped so far because newer ones had come. ``Frame.index``
    counts what the camera gave. Ends only with :class:`~edgecv.errors.InputError`, when the camera
    gives nothing for ``patience_s`` seconds, or by closing the iterator.
    """
    reader = _Newest(camera)
    dropped, last = 0, -1
    try:
        while True:
            frame = reader.take(patience_s)
            if frame is None:
                raise InputError(
                    f"{name}: no frame for {patience_s:g} s after {last + 1} frames: unplugged, or "
                    f"taken by another program" + (f" ({reader.failure})" if reader.failure else "")
                )
            dropped += frame.index - last - 1
            last = frame.index
            yield frame, dropped
    finally:
        reader.close()


class _Newest:
    """A thread that reads a camera and keeps its newest frame."""

    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        self._condition = threading.Condition()
        self._frame: Frame | None = None
        self._ended = self._stop = False
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        started = time.monotonic()
        index = 0
        empty_since: float | None = None
        while not self._stop:
            try:
                pixels = self._camera.read()
            except Exception as error:  # drivers raise what they like; the reader says it
                self.failure = error
                break
            now = time.monotonic()
            if pixels is None:
                empty_since = now if empty_since is None else empty_since
                if now - empty_since > PATIENCE_S:
                    break
                time.sleep(0.01)
                continue
            empty_since = None
            with self._condition:
                self._frame = Frame(index, now - started, pixels)
                self._condition.notify()
            index += 1
        with self._condition:
            self._ended = True
            self._condition.notify()

    def take(self, timeout: float) -> Frame | None:
        """The newest frame not taken yet; None when none comes in time, or ever."""
        with self._condition:
            self._condition.wait_for(lambda: self._frame is not None or self._ended, timeout)
            frame, self._frame = self._frame, None
            return frame

    def close(self) -> None:
        self._stop = True
        self._thread.join(PATIENCE_S)  # a driver that hangs must not hang the program
        self._camera.close()


def _cv2() -> Any:
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise BackendUnavailable(
            f"video files and cameras need OpenCV, which does not import ({error}): "
            f"pip install 'edgecv[video]'"
        ) from error


@contextlib.contextmanager
def _quiet(cv2: Any) -> Iterator[None]:
    """OpenCV writes to stderr what comes as an error of ours."""
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


def _not_opened(target: int | str) -> InputError:
    if isinstance(target, str):
        return InputError(f"{target}: OpenCV cannot read this video; it is damaged or no video")
    devices = sorted(path.name for path in Path("/dev").glob("video*"))
    return InputError(
        f"camera:{target} could not be opened; "
        + (f"there are {', '.join(devices)}" if devices else "there is no /dev/video device")
        + "; see whether it is plugged in, used by another program, or not yours to read (group "
        "video)"
    )
