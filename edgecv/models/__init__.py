"""The model zoo: one architecture per file, in torch.

``create`` is the only way in. Names are looked up with case, hyphens and underscores ignored, so
``mobilenetv2``, ``mobilenet-v2`` and ``mobilenet_v2`` are the same net.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgecv.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

# name -> "module:factory"; a classifier's first parameter is num_classes
FACTORIES = {
    "alexnet": "edgecv.models.alexnet:alexnet",
    "efficientnet": "edgecv.models.efficientnet:efficientnet",
    "efficientnet_b0": "edgecv.models.efficientnet:efficientnet_b0",
    "efficientnet_b1": "edgecv.models.efficientnet:efficientnet_b1",
    "efficientnet_b2": "edgecv.models.efficientnet:efficientnet_b2",
    "efficientnet_b3": "edgecv.models.efficientnet:efficientnet_b3",
    "efficientnet_b4": "edgecv.models.efficientnet:efficientnet_b4",
    "efficientnet_b5": "edgecv.models.efficientnet:efficientnet_b5",
    "efficientnet_b6": "edgecv.models.efficientnet:efficientnet_b6",
    "efficientnet_b7": "edgecv.models.efficientnet:efficientnet_b7",
    "efficientnet_lite0": "edgecv.models.efficientnet_lite:efficientnet_lite0",
    "efficientnet_lite1": "edgecv.models.efficientnet_lite:efficientnet_lite1",
    "efficientnet_lite2": "edgecv.models.efficientnet_lite:efficientnet_lite2",
    "efficientnet_lite3": "edgecv.models.efficientnet_lite:efficientnet_lite3",
    "efficientnet_lite4": "edgecv.models.efficientnet_lite:efficientnet_lite4",
    "embedder": "edgecv.models.embedder:embedder",
    "googlenet": "edgecv.models.googlenet:googlenet",
    "inception_v3": "edgecv.models.inceptionv3:inception_v3",
    "landmarks": "edgecv.models.heads:landmarks",
    "lenet5": "edgecv.models.lenet:lenet5",
    "localizer": "edgecv.models.heads:localizer",
    "mobilefacenet": "edgecv.models.mobilefacenet:mobilefacenet",
    "mobilenet_v1": "edgecv.models.mobilenetv1:mobilenet_v1",
    "mobilenet_v2": "edgecv.models.mobilenetv2:mobilenet_v2",
    "mobilenet_v3_large": "edgecv.models.mobilenetv3:mobilenet_v3_large",
    "mobilenet_v3_small": "edgecv.models.mobilenetv3:mobilenet_v3_small",
    "resnet18": "edgecv.models.resnet:resnet18",
    "resnet34": "edgecv.models.resnet:resnet34",
    "resnet50": "edgecv.models.resnet:resnet50",
    "siamese": "edgecv.models.siamese:siamese",
    "tf_efficientnet_lite0": "edgecv.models.efficientnet_lite:tf_efficientnet_lite0",
    "tf_efficientnet_lite1": "edgecv.models.efficientnet_lite:tf_efficientnet_lite1",
    "tf_efficientnet_lite2": "edgecv.models.efficientnet_lite:tf_efficientnet_lite2",
    "tf_efficientnet_lite3": "edgecv.models.efficientnet_lite:tf_efficientnet_lite3",
    "tf_efficientnet_lite4": "edgecv.models.efficientnet_lite:tf_efficientnet_lite4",
    "unet": "edgecv.models.unet:unet",
    "unet_mobilenet_v2": "edgecv.models.unet:unet_mobilenet_v2",
    "vgg16": "edgecv.models.vgg:vgg16",
    "yolo_grid_mobilenet_v2": "edgecv.models.yolo_mobilenet:yolo_grid_mobilenet_v2",
    "yolo_mobilenet_v2": "edgecv.models.yolo_mobilenet:yolo_mobilenet_v2",
    "yolox_nano": "edgecv.models.yolox:yolox_nano",
    "yolox_tiny": "edgecv.models.yolox:yolox_tiny",
}
# the same nets under the names that timm gives them
ALIASES = {"mobilenetv1_100": "mobilenet_v1"}


def canonical(name: str) -> str:
    """``name`` with case, hyphens and underscores taken out: the key that names are compared by."""
    return name.lower().replace("-", "").replace("_", "")


def resolve(name: str) -> str:
    """The zoo's own spelling of ``name``; an unknown one is an error that suggests the nearest."""
    names = {canonical(known): known for known in FACTORIES}
    names |= {canonical(alias): known for alias, known in ALIASES.items()}
    if (key := canonical(name)) in names:
        return names[key]
    near = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(names[n] for n in near)}?" if near else "see `edgecv models`"
    raise RecipeError(f"there is no model named {name!r}; {hint}")


def factory(name: str) -> Callable[..., nn.Module]:
    """The function that builds the net ``name``."""
    module, _, attribute = FACTORIES[resolve(name)].partition(":")
    found: Callable[..., nn.Module] = getattr(importlib.import_module(module), attribute)
    return found


def create(name: str, num_classes: int | None = None, **options: Any) -> nn.Module:
    """Build the net ``name`` with fresh random weights, in training mode.

    ``num_classes`` is the width of the last layer (default: the published one), ``options`` are
    the keyword arguments of the net's own factory. An unknown name, an option that the net does
    not have, or fewer than one class is a :class:`~edgecv.errors.RecipeError`.
    """
    build = factory(name)
    known = inspect.signature(build).parameters
    if surplus := sorted(set(options) - set(known)):
        allowed = ", ".join(p for p in known if p != "num_classes") or "none"
        raise RecipeError(f"{name} has no option {', '.join(surplus)}; it takes {allowed}")
    if num_classes is not None:
        if "num_classes" not in known:
            raise RecipeError(f"{name} has no classes; it takes {', '.join(known)}")
        try:
            classes = operator.index(num_classes)  # NumPy's integers too
        except TypeError:
            classes = 0
        if classes < 1:
            raise RecipeError(
                f"{name}: num_classes must be a number of at least 1, not {num_classes}"
            )
        options["num_classes"] = classes
    try:
        return build(**options)
    except (
        ArithmeticError,
        AttributeError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        given = ", ".join(f"{key} = {value!r}" for key, value in options.items())
        raise RecipeError(f"{name} cannot be built with {given}: {error}") from error
