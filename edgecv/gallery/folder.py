"""A gallery as a folder: one JSON file that says what counts, and safetensors files of vectors.

::

    door/gallery.json                    version, settings, the list of segments
    door/vectors-6f0c....safetensors     a segment: "vectors" F32 [n, D], "names" U8 [n, L] (UTF-8,
                                         padded with zeros)
    door/.lock                           held by the writer

A segment is never changed. A writer makes new ones under names never used before, then replaces
``gallery.json`` (one rename), then erases the segments that it replaced: at every moment the JSON
names whole files. What a killed writer leaves behind is erased by the next one to come.

Erasing writes zeros over a file before it is unlinked. On a disk that keeps old copies (journals
of data, snapshots, the spare blocks of an SSD or SD card) they are beyond a program's reach.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.files import open_binary
from edgecv.gallery.engine import mean_template, refuse_known, unknown_name
from edgecv.gallery.lock import lock
from edgecv.gallery.metrics import Vectors
from edgecv.gallery.search import BLOCK, Block, Blocks, nearest
from edgecv.gallery.segments import (
    MANIFEST,
    Names,
    Rows,
    erase,
    manifest_identity,
    parse_manifest,
    read_segment,
    read_whole,
    write_manifest,
    write_segment,
)
from edgecv.gallery.settings import Settings

LOOK = 0.25  # seconds between two looks at the manifest: changes are seen within a second
LOCK_TIMEOUT = 30.0  # seconds that a writer waits for another
RELOAD_TIMEOUT = 10.0  # seconds of a gallery changing faster than it can be read


@dataclass(frozen=True)
class _State:
    """One consistent view; replaced, never changed."""

    identity: tuple[int, ...]  # of the manifest file
    text: bytes  # of the manifest
    settings: Settings
    segments: tuple[Mapping[str, Any], ...]  # as the manifest lists them
    blocks: Mapping[str, tuple[Block, Names]]  # per segment file; empty under pooling = mean
    templates: Blocks
    owners: tuple[Names, ...]  # one array per block of templates


class FolderEngine:
    """See the module's docstring, and :class:`~edgecv.gallery.engine.Engine`. Thread-safe."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.where = str(folder)
        self._guard = threading.Lock()
        self._state = self._load(None)
        self._looked = time.monotonic()
        if self._leftovers(self._state):
            # suppressed: the folder is read-only, or a writer is at work
            with contextlib.suppress(InputError), lock(self.folder / ".lock", 0):
                self._sweep(self._load(self._state))

    @classmethod
    def create(cls, folder: str | os.PathLike[str], settings: Settings) -> FolderEngine:
        """A new, empty gallery; a folder that holds one, or other files, is refused."""
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be made a folder ({error.strerror})") from error
        with lock(path / ".lock", LOCK_TIMEOUT):
            if (path / MANIFEST).exists():
                raise InputError(f"{path}: there is a gallery in this folder already")
            if strangers := [p.name for p in path.iterdir() if not p.name.startswith(".")]:
                raise InputError(
                    f"{path}: there are other files in this folder, such as {strangers[0]}; a "
                    f"gallery needs a folder of its own"
                )
            write_manifest(path, settings, ())
        return cls(path)

    # --- reading ------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return self._current().settings

    def people(self) -> dict[str, int]:
        counts: dict[bytes, int] = {}
        for rows in self._all_rows():
            names, each = np.unique(rows.names, return_counts=True)
            for name, count in zip(names.tolist(), each.tolist(), strict=True):
                counts[name] = counts.get(name, 0) + count
        return {name.decode(): counts[name] for name in sorted(counts)}

    def vectors_of(self, name: str) -> Vectors:
        return _only(self._all_rows(), name, self.settings.space.dimension)

    def _all_rows(self) -> list[Rows]:
        """The rows of one moment; read again where a writer has erased some of them meanwhile."""
        state = self._current()
        while True:
            try:
                return list(self._segments(state))
            except InputError:
                newer = self._load(state)
                if newer is state:
                    raise
                state = newer

    def nearest(self, queries: Vectors, k: int) -> tuple[NDArray[np.float32], list[list[str]]]:
        state = self._current()
        settings = state.settings
        if not state.templates.count:
            return np.empty((len(queries), 0), np.float32), [[] for _ in queries]
        scores, rows = nearest(state.templates, queries, k, settings.metric, settings.factors)
        which, places = state.templates.locate(rows)
        names = [
            [state.owners[w][p].decode() for w, p in zip(*line, strict=True)]
            for line in zip(which.tolist(), places.tolist(), strict=True)
        ]
        return scores, names

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _current(self) -> _State:
        """The gallery as it is on the disk, at most :data:`LOOK` seconds old."""
        if time.monotonic() - self._looked > LOOK:
            with self._guard:
                self._state = self._load(self._state)
                self._looked = time.monotonic()
        return self._state

    def _load(self, old: _State | None) -> _State:
        """The state on the disk; segments that ``old`` has are not read again.

        A writer erases a segment only after the manifest stopped naming it. So where the manifest
        is the same before and after, what was read between is whole, and an error is real.
        """
        path = self.folder / MANIFEST
        deadline = time.monotonic() + RELOAD_TIMEOUT
        while True:
            identity = manifest_identity(path)
            if old is not None and identity == old.identity:
                return old
            with open_binary(path) as file:
                text = file.read()
            if old is not None and text == old.text:
                return replace(old, identity=identity)
            try:
                state = self._build(identity, text, old)
            except InputError:
                if read_whole(path) == text:
                    raise
            else:
                if read_whole(path) == text:
                    return state
            if time.monotonic() > deadline:
                raise InputError(f"{self.folder}: the gallery is changed faster than it is read")

    def _build(self, identity: tuple[int, ...], text: bytes, old: _State | None) -> _State:
        settings, segments = parse_manifest(text, self.folder / MANIFEST)
        known = {} if old is None or old.settings.metric != settings.metric else old.blocks
        blocks: dict[str, tuple[Block, Names]] = {}
        if settings.pooling == "mean":
            templates, owners = _means(list(self._read(segments, settings)), settings)
            return _State(identity, text, settings, segments, {}, templates, owners)
        for segment in segments:
            name = segment["file"]
            if name in known:
                blocks[name] = known[name]
            else:
                (rows,) = self._read([segment], settings)
                blocks[name] = (Block(rows.vectors, settings.metric), rows.names)
        templates = Blocks(block for block, _ in blocks.values())
        owners = tuple(names for _, names in blocks.values())
        return _State(identity, text, settings, segments, blocks, templates, owners)

    def _segments(self, state: _State) -> Iterator[Rows]:
        """All rows, a segment at a time, from memory where they are there."""
        for segment in state.segments:
            if segment["file"] in state.blocks:
                block, names = state.blocks[segment["file"]]
                yield Rows(block.vectors(), names)
            else:
                yield from self._read([segment], state.settings)

    def _read(self, segments: Sequence[Mapping[str, Any]], settings: Settings) -> Iterator[Rows]:
        for segment in segments:
            yield read_segment(self.folder, segment, settings.space.dimension)

    # --- writing ------------------------------------------------------------------------------

    def change(self, settings: Settings) -> None:
        with self._writing() as state:
            if settings.pooling == "mean" != state.settings.pooling:
                _means(list(self._segments(state)), settings)  # raises where a person has no mean
            write_manifest(self.folder, settings, state.segments)

    def add(self, names: Sequence[str], vectors: Vectors, extend: bool) -> None:
        with self._writing() as state:
            keys = _pack(names)
            new = Rows(vectors, keys)
            if not extend:
                refuse_known(names, [n.decode() for n in self._known(state, keys)], self.where)
            if state.settings.pooling == "mean":
                rows = [*self._segments(state), new]
                everyone = [part[np.isin(part.names, keys)] for part in rows]
                _means(everyone, state.settings)  # raises where a person has no mean
            kept = list(state.segments)
            if kept and kept[-1]["count"] < BLOCK:  # fill the last one up
                (tail,) = self._read([kept.pop()], state.settings)
                new = _join(tail, new)
            made = [
                write_segment(self.folder, new[i : i + BLOCK])
                for i in range(0, len(new.names), BLOCK)
            ]
            write_manifest(self.folder, state.settings, [*kept, *made])

    def remove(self, names: Sequence[str]) -> int:
        with self._writing() as state:
            keys = _pack(names)
            known = set(self._known(state, keys))
            for name in names:
                if name.encode() not in known:
                    raise unknown_name(name, self.where)
            kept, erased = [], 0
            for segment in state.segments:
                (rows,) = self._read([segment], state.settings)
                out = np.isin(rows.names, keys)
                erased += int(out.sum())
                if not out.any():
                    kept.append(segment)
                elif not out.all():
                    kept.append(write_segment(self.folder, rows[~out]))
            write_manifest(self.folder, state.settings, kept)
            return erased

    @contextlib.contextmanager
    def _writing(self) -> Iterator[_State]:
        """The lock, the newest state, and afterwards the erasing of what no longer counts."""
        with lock(self.folder / ".lock", LOCK_TIMEOUT), self._guard:
            state = self._state = self._load(self._state)
            self._looked = time.monotonic()
            try:
                yield state
            finally:  # after an error too: segments may have been written
                self._state = self._load(self._state)
                self._sweep(self._state)

    def _known(self, state: _State, keys: Names) -> list[bytes]:
        found: dict[bytes, None] = {}
        wanted = np.unique(keys)
        for rows in self._segments(state):
            found.update(dict.fromkeys(wanted[np.isin(wanted, rows.names)].tolist()))
        return sorted(found)

    def _leftovers(self, state: _State) -> list[Path]:
        current = {segment["file"] for segment in state.segments}
        return [
            path
            for pattern in ("vectors-*.safetensors", ".edgecv-*.part")
            for path in self.folder.glob(pattern)
            if path.name not in current
        ]

    def _sweep(self, state: _State) -> None:
        """Erase what no manifest names; only the holder of the lock may."""
        for path in self._leftovers(state):
            erase(path)


def _pack(names: Sequence[str]) -> Names:
    return np.array([name.encode() for name in names], np.bytes_)


def _only(parts: Sequence[Rows], name: str, dimension: int) -> Vectors:
    mine = [part.vectors[part.names == name.encode()] for part in parts]
    return np.concatenate([np.empty((0, dimension), np.float32), *mine])


def _join(a: Rows, b: Rows) -> Rows:
    return Rows(
        np.concatenate([a.vectors, b.vectors]),
        np.concatenate([a.names, b.names]),
    )


def _means(parts: list[Rows], settings: Settings) -> tuple[Blocks, tuple[Names, ...]]:
    """One template per person, ordered by name, in blocks."""
    if not parts:
        return Blocks(()), ()
    names, owner = np.unique(np.concatenate([p.names for p in parts]), return_inverse=True)
    vectors = np.concatenate([p.vectors for p in parts])
    order = np.argsort(owner, kind="stable")
    cuts = np.searchsorted(owner[order], np.arange(1, len(names)))
    means = [mean_template(vectors[rows], settings.metric) for rows in np.split(order, cuts)]
    blocks = Blocks.of(np.concatenate(means), settings.metric)
    return blocks, tuple(names[i : i + BLOCK] for i in range(0, len(names), BLOCK))
