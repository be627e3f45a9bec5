"""The model that comes with EdgeCV: `edgecv bench` has something to run where there is no model."""

from __future__ import annotations

from pathlib import Path

READY_MODEL = Path(__file__).parents[1] / "data" / "mobilenetv2-cifar10.onnx"
