"""A gallery in Milvus, for those who outgrow one machine: the same interface, by URI.

``http://host:19530#name`` is a server, ``file.db#name`` the embedded engine (``milvus-lite``); the
name of the collection is ``edgecv`` where none is given. The settings are kept in the collection's
properties. Search is exact (a FLAT index); whoever wants an approximate one can build it there.

What differs from a folder: Milvus has no chi-square and no learned likeness; two writers that add
one new name at the same moment may both succeed; the pooling is fixed when the gallery is made; and
``remove`` asks for compaction, but when the server wipes its files is its own affair.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import BackendUnavailable, InputError, RuntimeFailure
from edgecv.gallery.engine import mean_template, refuse_known, unknown_name
from edgecv.gallery.metrics import Vectors
from edgecv.gallery.settings import Settings

COLLECTION = "edgecv"
SETTINGS = "edgecv.settings"  # the property
BATCH = 4000  # rows in one insert: 8 MB at 512 values, the server takes 64 MB
MOST = 16384  # neighbours in one search, Milvus' own limit
TIMEOUT = 10.0  # seconds to reach a server

_METRICS = {"cosine": "COSINE", "euclidean": "L2", "squared-euclidean": "L2"}


def is_milvus(where: str | os.PathLike[str]) -> bool:
    """Whether ``where`` names a Milvus server or an embedded engine's file, and not a folder."""
    text = os.fspath(where).partition("#")[0]
    return re.match(r"(https?|tcp|unix)://?", text) is not None or text.endswith(".db")


class MilvusEngine:
    """See the module's docstring, and :class:`~edgecv.gallery.engine.Engine`."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._client, self._collection = _connect(where)
        with _mapped(where):
            if not self._client.has_collection(self._collection):
                raise InputError(
                    f"{where}: there is no gallery here (no collection {self._collection!r}); "
                    f"`edgecv gallery enrol` makes one"
                )
            self._client.load_collection(self._collection)

    @staticmethod
    def exists(where: str) -> bool:
        """Whether the collection is there."""
        client, collection = _connect(where)
        with _mapped(where):
            found = bool(client.has_collection(collection))
            client.close()
        return found

    @classmethod
    def create(cls, where: str, settings: Settings) -> MilvusEngine:
        """A new, empty collection; one that is there already is refused."""
        if settings.metric not in _METRICS:
            raise InputError(
                f"{where}: Milvus has no {settings.metric}; expected one of {', '.join(_METRICS)}, "
                f"or a gallery in a folder"
            )
        client, collection = _connect(where)
        from pymilvus import DataType, MilvusClient

        with _mapped(where):
            if client.has_collection(collection):
                raise InputError(f"{where}: there is a collection {collection!r} already")
            schema = MilvusClient.create_schema(auto_id=True, enable_dynamic_field=False)
            schema.add_field("id", DataType.INT64, is_primary=True, auto_id=True)
            schema.add_field("person", DataType.VARCHAR, max_length=32)
            schema.add_field("name", DataType.VARCHAR, max_length=255)
            schema.add_field("picture", DataType.BOOL)
            schema.add_field("template", DataType.BOOL)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=settings.space.dimension)
            index = client.prepare_index_params()
            index.add_index("vector", index_type="FLAT", metric_type=_METRICS[settings.metric])
            client.create_collection(
                collection, schema=schema, index_params=index, consistency_level="Strong"
            )
            client.alter_collection_properties(
                collection, {SETTINGS: json.dumps(settings.to_dict())}
            )
            client.close()
        return cls(where)

    @property
    def settings(self) -> Settings:
        with _mapped(self.where):
            properties = self._client.describe_collection(self._collection)["properties"]
        text = properties.get(SETTINGS)
        if text is None:
            raise InputError(f"{self.where}: this collection is no gallery of EdgeCV")
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InputError(f"{self.where}: the gallery's settings are damaged") from error
        return Settings.from_dict(data, self.where)

    def change(self, settings: Settings) -> None:
        if settings.pooling != self.settings.pooling:
            raise InputError(f"{self.where}: the pooling of a gallery in Milvus cannot be changed")
        with _mapped(self.where):
            self._client.alter_collection_properties(
                self._collection, {SETTINGS: json.dumps(settings.to_dict())}
            )

    def add(self, names: Sequence[str], vectors: Vectors, extend: bool) -> None:
        settings = self.settings
        unique = list(dict.fromkeys(names))
        known = self._known(unique)
        if not extend:
            refuse_known(names, sorted(known), self.where)
        means: dict[str, Vectors] = {}
        if settings.pooling == "mean":
            owners = np.array(names)
            for name in unique:
                old = self.vectors_of(name) if name in known else vectors[:0]
                together = np.concatenate([old, vectors[owners == name]])
                means[name] = mean_template(together, settings.metric)
        best = settings.pooling == "best"
        rows = [
            _row(name, vector, picture=True, template=best)
            for name, vector in zip(names, vectors, strict=True)
        ]
        rows += [_row(name, m[0], picture=False, template=True) for name, m in means.items()]
        with _mapped(self.where):
            if means and known:
                self._client.delete(
                    self._collection, filter=f"{_people(sorted(known))} and picture == false"
                )
            for start in range(0, len(rows), BATCH):
                self._client.insert(self._collection, rows[start : start + BATCH])
            self._client.flush(self._collection)

    def remove(self, names: Sequence[str]) -> int:
        known = self._known(names)
        for name in names:
            if name not in known:
                raise unknown_name(name, self.where)
        count = sum(len(self.vectors_of(name)) for name in names)
        with _mapped(self.where):
            self._client.delete(self._collection, filter=_people(names))
            self._client.flush(self._collection)
            self._client.compact(self._collection)
        return count

    def people(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for row in self._rows("picture == true", ["name"]):
            counts[row["name"]] = counts.get(row["name"], 0) + 1
        return dict(sorted(counts.items()))

    def vectors_of(self, name: str) -> Vectors:
        rows = self._rows(f"{_people([name])} and picture == true", ["vector"])
        vectors = [row["vector"] for row in rows]
        return np.array(vectors, np.float32).reshape(len(vectors), self.settings.space.dimension)

    def nearest(self, queries: Vectors, k: int) -> tuple[NDArray[np.float32], list[list[str]]]:
        with _mapped(self.where):
            found = self._client.search(
                self._collection,
                queries.tolist(),
                limit=min(k, MOST),
                filter="template == true",
                output_fields=["name"],
            )
        names = [[hit["entity"]["name"] for hit in line] for line in found]
        scores = np.array([[hit["distance"] for hit in line] for line in found], np.float32)
        scores = scores.reshape(len(queries), -1)
        if self.settings.metric == "euclidean":  # Milvus' L2 is the square
            scores = np.sqrt(np.maximum(scores, 0))
        return scores, names

    def close(self) -> None:
        self._client.close()

    def _known(self, names: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(names), BATCH):
            people = _people(names[start : start + BATCH])
            found |= {row["name"] for row in self._rows(people, ["name"])}
        return found

    def _rows(self, where: str, fields: list[str]) -> Iterator[dict[str, Any]]:
        """All rows that ``where`` selects; a plain query stops at 16,384."""
        with _mapped(self.where):
            rows = self._client.query_iterator(
                self._collection, batch_size=BATCH, filter=where, output_fields=fields
            )
            while batch := rows.next():
                yield from batch
            rows.close()


def _connect(where: str) -> tuple[Any, str]:
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise BackendUnavailable(
            f"{where}: a gallery in Milvus needs pymilvus, which is not installed: "
            f"pip install 'edgecv[milvus]'"
        ) from error
    uri, _, collection = where.partition("#")
    if collection and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", collection):
        raise InputError(
            f"{where}: {collection!r} is no name of a collection (letters, digits, underscores)"
        )
    with _mapped(where):
        return MilvusClient(uri, timeout=TIMEOUT), collection or COLLECTION


@contextlib.contextmanager
def _mapped(where: str) -> Iterator[None]:
    """Milvus' errors as ours; its own log of them, with a traceback each, is silenced."""
    from pymilvus.exceptions import MilvusException

    logger = logging.getLogger("pymilvus")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except (MilvusException, OSError) as error:
        text = getattr(error, "message", None) or str(error)
        raise RuntimeFailure(f"{where}: Milvus: {text}") from error
    finally:
        logger.setLevel(before)


def _row(name: str, vector: Vectors, *, picture: bool, template: bool) -> dict[str, Any]:
    key = {"person": _person(name), "name": name}
    return {**key, "picture": picture, "template": template, "vector": vector}


def _person(name: str) -> str:
    """What rows are selected by: hexadecimal, so that no name can be read as an expression."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _people(names: Sequence[str]) -> str:
    return f"person in {json.dumps([_person(name) for name in names])}"
