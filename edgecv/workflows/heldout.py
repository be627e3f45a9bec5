"""Which pictures a quantized file may be judged on: never on those that made it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edgecv.errors import InputError
from edgecv.files import sha256_of
from edgecv.preprocess import list_pictures
from edgecv.spec import ModelSpec
from edgecv.workflows.evaluate import labelled_pictures

Warn = Callable[[str], None]


class Seen:
    """Whether a picture is one of ``pictures``, under whatever name: by its bytes."""

    def __init__(self, pictures: Iterable[Path]) -> None:
        self._by_size: dict[int, list[Path]] = {}
        for path in pictures:
            self._by_size.setdefault(path.stat().st_size, []).append(path)
        self._hashes: dict[Path, str] = {}

    def __call__(self, path: Path) -> bool:
        twins = self._by_size.get(path.stat().st_size, []) if path.is_file() else []
        return any(self._hash(path) == self._hash(twin) for twin in twins)

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256_of(path)
        return self._hashes[path]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Pictures to judge on; ``dataset`` has labels for them, without those of ``leave_out``.

    ``synthetic``: no camera took them, and agreement on them is no accuracy.
    """

    pictures: list[Path]
    dataset: Path | None = None
    leave_out: Callable[[Path], bool] | None = None
    synthetic: bool = False


def held_out(
    spec: ModelSpec,
    data: str | os.PathLike[str] | None,
    rest: list[Path],
    drawn: list[Path],
    seen: Seen,
    warn: Warn,
    synthetic: bool = False,
) -> HeldOut:
    """The pictures of ``data``, else of ``rest``, that are not ``seen``.

    ``synthetic`` says what ``rest`` and ``drawn`` are; ``data`` is real. Where there are none the
    file is proven on what made it (``drawn``), and that is said.
    """
    dataset = None if data is None else Path(data)
    found = rest
    if dataset is not None:
        try:
            found = labelled_pictures(spec, dataset)
        except InputError as error:
            if not dataset.is_dir() or not (pictures := list_pictures(dataset)):
                raise
            warn(f"the drop is disagreement with the parent: no labels were found ({error})")
            dataset, found = None, pictures
    left = [path for path in found if not seen(path)]
    if dataset is not None and spec.task == "embed" and len(left) < len(found):
        warn(
            f"{dataset}: {len(found) - len(left)} of its pictures made this file, and a pair needs "
            f"both of its own: no score is taken, the drop is disagreement on the others"
        )
        dataset = None
    if left:
        return HeldOut(left, dataset, seen, synthetic and data is None)
    warn("no picture is left to prove the file on: it is proven on those that calibrated it")
    return HeldOut(drawn, synthetic=synthetic)
