"""EdgeCV: from a PyTorch vision model to a device, with proof.

>>> model = edgecv.load("mobilenetv2.onnx")          # doctest: +SKIP
>>> model("cat.jpg").best                            # doctest: +SKIP
Class(id=3, label='cat', probability=0.98)

Running a model needs NumPy, Pillow and one runtime. What needs torch or onnx (``export``) is
imported when it is first used, not before.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgecv import errors, results
    from edgecv.faces import FacePipeline
    from edgecv.gallery import Gallery
    from edgecv.model import Model, load
    from edgecv.runtimes.base import RuntimeOptions
    from edgecv.workflows.bench import bench
    from edgecv.workflows.evaluate import evaluate
    from edgecv.workflows.export import export
    from edgecv.workflows.quantize import quantize
    from edgecv.workflows.verify import verify

# public name -> "module:attribute", or a module of ours
_PUBLIC = {
    "load": "edgecv.model:load",
    "Model": "edgecv.model:Model",
    "FacePipeline": "edgecv.faces:FacePipeline",
    "Gallery": "edgecv.gallery:Gallery",
    "RuntimeOptions": "edgecv.runtimes.base:RuntimeOptions",
    "export": "edgecv.workflows.export:export",
    "quantize": "edgecv.workflows.quantize:quantize",
    "verify": "edgecv.workflows.verify:verify",
    "bench": "edgecv.workflows.bench:bench",
    "evaluate": "edgecv.workflows.evaluate:evaluate",
    "errors": "edgecv.errors",
    "results": "edgecv.results",
}

__all__ = [
    "FacePipeline",
    "Gallery",
    "Model",
    "RuntimeOptions",
    "bench",
    "errors",
    "evaluate",
    "export",
    "load",
    "quantize",
    "results",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgecv' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    found = importlib.import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps ``edgecv.export`` the function when the subpackage of that name is imported.

    Python binds a subpackage in its parent as soon as it is loaded, in whatever order users
    import things; the verbs of the public API share their names with the folders that do the
    work. ``from edgecv.export.recipe import ...`` is not affected.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and ":" in _PUBLIC.get(name, "")):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
