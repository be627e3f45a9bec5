"""Weights: which ones, from where, and into the net with nothing missing and nothing left over."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgecv.errors import WeightsError
from edgecv.export.download import cached_path, fetch
from edgecv.export.recipe import Recipe, load_recipe
from edgecv.export.sources import build, is_program
from edgecv.files import atomic_write, sha256_of
from edgecv.progress import Progress, silent

CHOICES = ("auto", "imagenet", "bundled", "random")
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's


@dataclass(frozen=True)
class ResolvedWeights:
    """What a choice came to. ``recipe`` differs from the one asked for where bundled weights are
    another recipe's; ``warning`` must be shown."""

    recipe: Recipe
    origin: str  # imagenet, bundled, random, file, program
    path: Path | None = None
    sha256: str | None = None
    licence: str = ""
    warning: str = ""


def resolve(recipe: Recipe, choice: str = "auto", progress: Progress = silent) -> ResolvedWeights:
    """Turn ``auto``, ``imagenet``, ``bundled``, ``random`` or a file's path into weights.

    ``auto`` takes the published weights from the cache or by download, and where neither can be
    had the bundled ones, with a warning. Anything else is that or a
    :class:`~edgecv.errors.WeightsError` with the remedies.
    """
    if is_program(recipe.source):
        if choice != "auto":
            raise WeightsError(
                f"--weights {choice}: {recipe.source} is a torch.export program and brings its own "
                f"weights; leave --weights out"
            )
        return ResolvedWeights(recipe, "program", Path(recipe.source), sha256_of(recipe.source))
    if choice == "random":
        return ResolvedWeights(recipe, "random")
    if choice == "bundled":
        return _bundled(recipe)
    if choice == "imagenet":
        return _published(recipe, progress)
    if choice != "auto":
        path = Path(choice)
        if not path.is_file():
            raise WeightsError(
                f"--weights {choice}: there is no such file; expected one of "
                f"{', '.join(CHOICES)}, or a .pth or .safetensors file"
            )
        return ResolvedWeights(recipe, "file", path, sha256_of(path))
    if "imagenet" not in recipe.weights and "bundled" in recipe.weights:
        return _bundled(recipe)
    try:
        return _published(recipe, progress)
    except WeightsError as error:
        if "bundled" not in recipe.weights:
            raise
        bundled = _bundled(recipe)
        classes = len(bundled.recipe.labels)
        warning = (
            f"the published weights of {recipe.name} cannot be had here:\n{error}\n"
            f"Taking the weights bundled with EdgeCV instead: {bundled.recipe.summary} "
            f"({classes} classes). The file is named {bundled.recipe.name}."
        )
        return replace(bundled, warning=warning)


def _bundled(recipe: Recipe) -> ResolvedWeights:
    source = recipe.weights.get("bundled")
    if source is not None and source.recipe:
        recipe = load_recipe(source.recipe)
        source = recipe.weights.get("bundled")
    if source is None or source.file is None:
        raise WeightsError(
            f"{recipe.name} has no bundled weights; it has {_named(recipe)}; --weights FILE takes "
            f"your own"
        )
    digest = sha256_of(source.file)
    if source.sha256 and not digest.startswith(source.sha256):
        raise WeightsError(
            f"{source.file}: expected sha256 {source.sha256}, got {digest}: the installation is "
            f"damaged; install EdgeCV again"
        )
    return ResolvedWeights(recipe, "bundled", source.file, digest, source.licence)


def _published(recipe: Recipe, progress: Progress) -> ResolvedWeights:
    source = recipe.weights.get("imagenet")
    if source is None or not source.url:
        raise WeightsError(
            f"{recipe.name} names no published weights; it has {_named(recipe)}; --weights FILE "
            f"takes your own, --weights random none"
        )
    path = fetch(source.url, source.sha256, progress)
    return ResolvedWeights(recipe, "imagenet", path, sha256_of(path), source.licence)


def find_by_sha256(recipe: Recipe, sha256: str, near: Path) -> Path | None:
    """Weights of that digest that are on this machine already: the recipe's own, or ``near``."""
    paths = [near]
    for source in recipe.weights.values():
        if source.file is not None or source.url:
            paths.append(source.file or cached_path(source.url))
    return next((path for path in paths if path.is_file() and sha256_of(path) == sha256), None)


def _named(recipe: Recipe) -> str:
    return ", ".join(recipe.weights) or "none"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors``, ``.pth`` or ``.pt`` file, in float32 where they are float.

    Wrappers (``state_dict``, ``model``, ...) and the prefixes of DataParallel and torch.compile
    are taken off. Nothing is unpickled but tensors: a file that holds code is refused.
    """
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for prefix in PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise WeightsError(f"{path}: NaN or infinite values in {_some(bad)}; the training diverged")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error})") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull`")
    try:
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_pickle(path, head):
            raise WeightsError(
                f"{path}: holds pickled Python objects, not only tensors; loading it could run "
                f"code of whoever made it, so it is refused; save the weights alone: "
                f"torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        raise WeightsError(f"{path}: not a checkpoint that torch can read") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path}: a corrupt or cut-off checkpoint ({error or type(error).__name__}); copy or "
            f"download it again"
        ) from error
    return _unwrap(loaded, path)


def _is_pickle(path: Path, head: bytes) -> bool:
    return zipfile.is_zipfile(path) or head[:1] == b"\x80"


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(f"{path}: expected a state dict, got {type(loaded).__name__}")
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    if len(tensors) != len(loaded):
        other = [str(k) for k, v in loaded.items() if not isinstance(v, Tensor)]
        raise WeightsError(
            f"{path}: expected a state dict of tensors; {_some(other)} are something else; give "
            f"the file with the weights alone"
        )
    return tensors


def num_classes_of(recipe: Recipe, state: Mapping[str, Tensor]) -> int | None:
    """How many classes a checkpoint was made for; None where the architecture has no such choice.

    The net is built twice without memory (torch's meta device), for n and n + 1 classes: the
    parameters whose shapes differ are the head's, and the checkpoint's sizes there tell. A
    detector's differ by as many as a cell has anchors.
    """
    guess = max(len(recipe.labels), 2)
    with torch.device("meta"):
        one, two = (
            build(recipe.source, n, recipe.options, recipe.folder).state_dict()
            for n in (guess, guess + 1)
        )
    for key, tensor in one.items():
        if key not in two or key not in state or tensor.ndim != state[key].ndim:
            continue
        for axis, (a, b) in enumerate(zip(tensor.shape, two[key].shape, strict=True)):
            found, rest = divmod(state[key].shape[axis] - a, b - a) if b > a else (0, 1)
            if not rest and guess + found > 0:
                return guess + found
    return None


def load_model(weights: ResolvedWeights) -> nn.Module:
    """The recipe's net with ``weights`` in it, in eval mode.

    The class count is the checkpoint's and must equal the labels'.
    """
    recipe = weights.recipe
    if weights.origin == "program":
        return build(recipe.source, None, {}, recipe.folder).eval()
    if weights.path is None:
        torch.manual_seed(0)  # the same command writes the same file
        return build(
            recipe.source, len(recipe.labels) or None, recipe.options, recipe.folder
        ).eval()
    state = read_state_dict(weights.path)
    classes = num_classes_of(recipe, state)
    if classes is not None and classes != len(recipe.labels):
        raise WeightsError(
            f"{weights.path}: made for {classes} classes, but {recipe.name} has "
            f"{len(recipe.labels)} labels; give the names of the {classes} with --labels FILE"
        )
    model = build(recipe.source, classes, recipe.options, recipe.folder)
    load_into(model, state, str(weights.path))
    return model.eval()


def load_into(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load ``state`` with nothing missing, nothing surplus and every shape right."""
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    surplus = [k for k in state if k not in own]
    shapes = [
        f"{k} is {list(state[k].shape)}, the net has {list(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    name = type(model).__name__
    if state and not own.keys() & state.keys():
        raise WeightsError(
            f"{where}: these are another architecture's weights: {name} has keys such as "
            f"{_some(list(own))}, the file has {_some(surplus)}"
        )
    if missing:
        raise WeightsError(
            f"{where}: {len(missing)} of {name}'s {len(own)} tensors are missing: {_some(missing)}"
        )
    if surplus:
        raise WeightsError(
            f"{where}: {len(surplus)} tensors have no place in {name}: {_some(surplus)}; is it "
            f"another variant of the net?"
        )
    if shapes:
        raise WeightsError(
            f"{where}: {len(shapes)} tensors have another shape: {'; '.join(shapes[:3])}; another "
            f"width, or another variant of the net?"
        )
    model.load_state_dict({**own, **state})


def write_safetensors(
    state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str], dtype: torch.dtype
) -> None:
    """Store ``state`` with its floating-point tensors in ``dtype``; atomic.

    A tensor with numbers that ``dtype`` cannot hold stays as it is: a variance of inputs from 0 to
    255 is soon beyond float16's 65504. Counters of BatchNorm's batches are left out: no inference
    needs them.
    """
    from safetensors.torch import save

    tensors = {
        key: _stored(value, dtype).contiguous()
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    with atomic_write(path) as file:
        file.write(_ordered(save(tensors, dict(metadata)), metadata))


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    if not value.is_floating_point():
        return value
    small = value.to(dtype)
    held = torch.isfinite(small) | ~torch.isfinite(value)
    return small if bool(held.all()) else value


def _ordered(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with its metadata in the order given.

    The library writes them in an order that changes from process to process, and the same
    training gives the same bytes. Format: the header's length (8 bytes, little endian), the
    header (JSON, padded with spaces to a multiple of 8), the tensors.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = {**json.loads(data[8:end]), "__metadata__": dict(metadata)}
    header = {"__metadata__": header.pop("__metadata__"), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
