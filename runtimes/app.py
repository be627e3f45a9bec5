"""Watch a camera or a folder with a model: one line of JSON per picture, the same on every device.

python app.py model.onnx pictures/                       a folder, once
python app.py model.onnx camera:0 --profile low-power    the first camera, until Ctrl-C
"""

import argparse
import json
import sys
import time
from pathlib import Path

import edgecv


def folder(path):
    """Each picture of a folder, in the order of its name."""
    for picture in sorted(Path(path).iterdir()):
        if picture.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp", ".webp"):
            yield picture.name, picture


def camera(index):
    """The newest frame of a camera, again and again; OpenCV gives BGR."""
    import cv2

    capture = cv2.VideoCapture(index)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a queue of old frames is latency
    while True:
        there, frame = capture.read()
        if not there:
            sys.exit(f"camera {index} gives no picture")
        yield time.strftime("%H:%M:%S"), frame


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("source", help="a folder, or camera:0")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--profile", default="default", help="low-power: idle threads sleep")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    kind, _, index = arguments.source.partition(":")
    frames = camera(int(index)) if kind == "camera" else folder(arguments.source)
    options = edgecv.RuntimeOptions(threads=arguments.threads, profile=arguments.profile)
    with edgecv.load(arguments.model, backend=arguments.backend, options=options) as model:
        print(f"{model.info.backend} on {model.info.device}", file=sys.stderr)
        for name, picture in frames:
            start = time.perf_counter()
            result = model(picture, color="bgr" if kind == "camera" else "rgb")
            elapsed = round((time.perf_counter() - start) * 1e3, 2)
            print(json.dumps({"source": name, "ms": elapsed, **result.to_dict()}), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (edgecv.errors.EdgeCVError, OSError, ImportError, ValueError, KeyboardInterrupt) as why:
        sys.exit(str(why) or "stopped")
