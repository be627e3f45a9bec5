"""Every error that EdgeCV raises on purpose.

::

    EdgeCVError                    exit code 2
    ├── InputError                 a picture, a folder or an array that cannot be used
    ├── SpecError                  a model file whose contract is missing, damaged or too new
    ├── RecipeError                a recipe with an unknown key, a wrong type or a missing file
    ├── WeightsError               weights that cannot be had, or that do not fit the model
    ├── ExportError                a model that could not be turned into a correct ONNX file
    ├── QuantizeError              a model that cannot be quantized as asked
    ├── FeedError                  tensors that do not match what the model declares
    ├── RuntimeFailure             a runtime refused the file, or failed while running it
    ├── CheckFailed                exit code 1: a comparison or a gate fell short
    └── BackendUnavailable         exit code 3: the backend is not installed or not usable here

Each message says what was expected, what came, where, and what to do about it. Exceptions of
other libraries are mapped to these at the edge where they appear, with the original as
``__cause__``.
"""

from __future__ import annotations


class EdgeCVError(Exception):
    """Base of all errors of EdgeCV; ``exit_code`` is what the command line ends with."""

    exit_code = 2


class InputError(EdgeCVError):
    """A picture, folder or array that cannot be used as it is."""


class SpecError(EdgeCVError):
    """The contract inside a model file is missing, damaged, or newer than this reader."""


class RecipeError(EdgeCVError):
    """A recipe has an unknown key, a wrong type, or names a file that is not there."""


class WeightsError(EdgeCVError):
    """Weights cannot be had, or do not fit the model."""


class ExportError(EdgeCVError):
    """The model could not be turned into a correct ONNX file."""


class QuantizeError(EdgeCVError):
    """The model cannot be quantized: already integers, broken weights, control flow, ..."""


class FeedError(EdgeCVError):
    """Input tensors do not match what the model declares."""


class RuntimeFailure(EdgeCVError):
    """A runtime refused the model file, or failed while running it."""


class CheckFailed(EdgeCVError):
    """A comparison or a gate fell short of what was asked for."""

    exit_code = 1


class BackendUnavailable(EdgeCVError):
    """The backend is not installed, or cannot be used on this machine."""

    exit_code = 3
