"""Where an architecture comes from: the zoo, a factory, timm, torchvision, a saved program."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecv import models
from edgecv.errors import RecipeError, WeightsError

LIBRARIES = ("timm", "torchvision")  # sources that are packages' own collections


def is_program(source: str) -> bool:
    """Whether ``source`` is a saved ``torch.export`` program, which brings its own weights."""
    return source.endswith(".pt2")


def is_users(source: str) -> bool:
    """Whether ``source`` is a factory in code of the user's."""
    kind, _, name = source.partition(":")
    return bool(name) and kind not in LIBRARIES and not is_program(source)


def build(
    source: str, num_classes: int | None, options: Mapping[str, Any], folder: Path
) -> nn.Module:
    """The untrained net that ``source`` names, with ``num_classes`` outputs.

    ``source`` is a zoo name, ``module:factory``, ``timm:NAME``, ``torchvision:NAME`` or a ``.pt2``
    file. ``options`` are the factory's keyword arguments. ``folder`` (the recipe's) and the
    current folder are on the import path while a factory is imported. Every way this can fail is
    a :class:`~edgecv.errors.RecipeError` that names the source.
    """
    if is_program(source):
        return load_program(Path(source))
    kind, _, name = source.partition(":")
    if not name:
        takes = _takes(models.factory(source), "num_classes")
        return models.create(source, num_classes if takes else None, **options)
    arguments = dict(options)
    if kind == "timm":
        factory = _library("timm").create_model
        arguments = {"model_name": name, **arguments}
    elif kind == "torchvision":
        factory = _library("torchvision").models.get_model
        arguments = {"name": name, **arguments}
    else:
        factory = _user_factory(kind, name, folder)
    if num_classes is not None and _takes(factory, "num_classes"):
        arguments.setdefault("num_classes", num_classes)
    try:
        with _importing_from(folder):
            model = factory(**arguments)
    except Exception as error:  # a user's code may raise anything
        raise RecipeError(
            f"{source}: the factory failed with {type(error).__name__}: {error} (its arguments "
            f"were {arguments})"
        ) from error
    if not isinstance(model, nn.Module):
        raise RecipeError(
            f"{source}: expected the factory to return a torch.nn.Module, got "
            f"{type(model).__name__}"
        )
    return model


def load_program(path: Path) -> nn.Module:
    """A program saved by ``torch.export.save``.

    The archive is read by torch's schema deserializer; its weights by torch.load, which refuses
    pickled code since torch 2.6 unless it is asked for.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: there is no such program")
    if not zipfile.is_zipfile(path):
        raise RecipeError(f"{path}: not a torch.export program (expected a zip archive)")
    try:
        program = torch.export.load(path)
    except Exception as error:  # a damaged archive fails anywhere in the deserializer
        raise RecipeError(
            f"{path}: torch {torch.__version__} cannot read this as a saved torch.export program: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; save it with "
            f"torch.export.save(torch.export.export(model.eval(), (example,)), {path.name!r})"
        ) from error
    return _Program(program.module())


class _Program(nn.Module):
    """An exported program's module: it is traced in inference mode and refuses ``eval()``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.program = module

    def train(self, mode: bool = True) -> _Program:
        if mode:
            raise WeightsError("a torch.export program cannot be trained: its graph is fixed")
        return self

    def forward(self, x: torch.Tensor) -> Any:
        return self.program(x)


def _library(name: str) -> Any:
    try:
        module = importlib.import_module(name)
        importlib.import_module(f"{name}.models")
    except (
        ImportError,
        RuntimeError,
    ) as error:  # torchvision raises RuntimeError beside a foreign torch
        raise RecipeError(
            f"{name}:... needs the package {name}, which does not import here ({error}); install "
            f"the {name} that belongs to torch {torch.__version__}"
        ) from error
    return module


def _user_factory(module: str, attribute: str, folder: Path) -> Callable[..., Any]:
    with _importing_from(folder):
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise RecipeError(
                f"{module}:{attribute}: there is no module {error.name!r}; looked in {folder}, "
                f"{Path.cwd()} and the installed packages"
            ) from error
        except Exception as error:  # importing runs the user's code
            raise RecipeError(
                f"{module}:{attribute}: importing {module} failed with "
                f"{type(error).__name__}: {error}"
            ) from error
    factory = getattr(found, attribute, None)
    if not callable(factory):
        raise RecipeError(f"{module}:{attribute}: {found.__file__} has no function {attribute!r}")
    result: Callable[..., Any] = factory
    return result


def _takes(factory: Callable[..., Any], parameter: str) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # no signature to read: let the call decide
        return True
    return any(p.name == parameter or p.kind is p.VAR_KEYWORD for p in parameters)


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = [str(folder), str(Path.cwd())]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
