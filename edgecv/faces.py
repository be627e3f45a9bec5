"""Faces from a photograph to a name: detector, alignment, embedding, gallery."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgecv.align import ALIGNMENT, align_face
from edgecv.closing import Closing
from edgecv.errors import InputError
from edgecv.gallery import Gallery, Identity, Space, Verification, comparison
from edgecv.gallery import verify as verify_vectors
from edgecv.model import Model, load
from edgecv.preprocess import Picture, open_picture
from edgecv.results import Detections, Embedding
from edgecv.runtimes.base import RuntimeOptions


@dataclass(frozen=True, eq=False)
class Face:
    """One face: where it is, its embedding, and who it is where there is a gallery to ask.

    ``box`` float32 ``[4]`` (x1, y1, x2, y2) and ``landmarks`` ``[5, 2]`` in pixels of the picture;
    ``vector`` float32 ``[D]``.
    """

    box: NDArray[np.float32]
    score: float
    landmarks: NDArray[np.float32]
    vector: NDArray[np.float32]
    identity: Identity | None = None

    @property
    def area(self) -> float:
        """Of the box, in pixels."""
        width, height = (self.box[2:] - self.box[:2]).clip(0).tolist()
        return float(width * height)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the vector stays out: it is nobody's to read in a log."""
        return {
            "box": self.box.tolist(),
            "score": self.score,
            "landmarks": self.landmarks.tolist(),
            "identity": None if self.identity is None else self.identity.to_dict(),
        }

    def __str__(self) -> str:
        x1, y1, x2, y2 = (round(v) for v in self.box.tolist())
        who = f"{self.identity} " if self.identity is not None else ""
        return f"{who}at ({x1}, {y1}, {x2}, {y2}), face {self.score:.2f}"


class FacePipeline(Closing):
    """Finds faces, aligns them by five landmarks, embeds them, and names them from a gallery.

    ::

        faces = edgecv.FacePipeline("yunet.onnx", "mobilefacenet.onnx", gallery="door")
        faces.enrol("anna", "anna.jpg")
        [face.identity.name for face in faces("group.jpg")]  # ["anna", None]

    ``detector`` (task ``detect`` with five landmarks; ``None`` where pictures are aligned 112x112
    crops, or things other than faces) and ``embedder`` (task ``embed``) are files or open models;
    ``gallery`` a folder, a Milvus URI or an open one. A gallery of another embedding space is
    refused. Nothing tells a living person from a photograph. Thread-safe.
    """

    def __init__(
        self,
        detector: str | os.PathLike[str] | Model | None,
        embedder: str | os.PathLike[str] | Model,
        *,
        gallery: str | os.PathLike[str] | Gallery | None = None,
        backend: str = "auto",
        options: RuntimeOptions | None = None,
        conf: float | None = None,
    ) -> None:
        self.conf = conf
        self._owned: list[Model | Gallery] = []
        try:
            self.detector = None if detector is None else self._open(detector, backend, options)
            if self.detector is not None and self.detector.spec.task != "detect":
                raise InputError(
                    f"{self.detector.spec.name}: expected a detector of faces, its task is "
                    f"{self.detector.spec.task!r}"
                )
            self.embedder = self._open(embedder, backend, options)
            if self.embedder.spec.task != "embed":
                raise InputError(
                    f"{self.embedder.spec.name}: expected an embedding net, its task is "
                    f"{self.embedder.spec.task!r}"
                )
            self.gallery = self._open_gallery(gallery)
        except BaseException:
            self.close()
            raise

    @property
    def space(self) -> Space:
        """The space of the vectors that this pipeline makes."""
        return Space.of(self.embedder.spec, None if self.detector is None else ALIGNMENT)

    def __call__(self, picture: Picture, *, color: str = "rgb") -> list[Face]:
        """All faces of ``picture``, the surest first; none is an empty list.

        With a gallery each face has its :class:`~edgecv.gallery.Identity`. Without a detector the
        whole picture is the one face.
        """
        faces = self._faces(picture, color)
        if self.gallery is None or not faces:
            return faces
        found = self.gallery.identify(np.stack([face.vector for face in faces]))
        return [
            Face(f.box, f.score, f.landmarks, f.vector, identity)
            for f, identity in zip(faces, found, strict=True)
        ]

    def one(self, picture: Picture, *, color: str = "rgb", largest: bool = False) -> Face:
        """The only face of ``picture``; ``largest`` takes the largest of several.

        Raises :class:`~edgecv.errors.InputError` where there is none, or several.
        """
        faces = self._faces(picture, color)
        name = f"{picture}: " if isinstance(picture, str | os.PathLike) else ""
        if not faces:
            raise InputError(
                f"{name}there is no face in this picture; take one that is nearer, brighter or "
                f"turned to the camera"
            )
        if len(faces) > 1 and not largest:
            raise InputError(
                f"{name}there are {len(faces)} faces in this picture, and it does not say whose it "
                f"is; cut the face out, or ask for the largest (--largest, largest=True)"
            )
        return max(faces, key=lambda face: face.area)

    def enrol(
        self,
        name: str,
        pictures: Picture | Sequence[Picture],
        *,
        color: str = "rgb",
        extend: bool = False,
        largest: bool = False,
    ) -> list[Face]:
        """Add a person to the gallery by one picture, or several; the faces that were taken.

        All pictures are read before anything is stored: one without a face stores nothing.
        """
        gallery = self._gallery()
        many = cast(
            "Sequence[Picture]", pictures if isinstance(pictures, list | tuple) else [pictures]
        )
        if not many:
            raise InputError(f"expected at least one picture of {name!r}")
        faces = [self.one(picture, color=color, largest=largest) for picture in many]
        gallery.enrol(name, np.stack([face.vector for face in faces]), extend=extend)
        return faces

    def verify(
        self, name: str, picture: Picture, *, color: str = "rgb", largest: bool = False
    ) -> Verification:
        """Whether the face of ``picture`` is the person enrolled as ``name``."""
        gallery = self._gallery()
        return gallery.verify(name, self.one(picture, color=color, largest=largest).vector)

    def compare(
        self, a: Picture, b: Picture, threshold: float, *, metric: str | None = None
    ) -> Verification:
        """Whether two pictures show one person, without a gallery.

        By default by the likeness that the embedder has learned, or else by cosine.
        """
        measure, weights = comparison(self.embedder.spec, metric)
        return verify_vectors(self.one(a).vector, self.one(b).vector, threshold, measure, weights)

    def _faces(self, picture: Picture, color: str) -> list[Face]:
        image = open_picture(picture, color=color)
        if self.detector is None:
            (embedding,) = self.embedder([image])
            whole = np.array([0, 0, image.width, image.height], np.float32)
            return [Face(whole, 1.0, np.empty((0, 2), np.float32), embedding.vector)]
        found: Detections = self.detector(image, conf=self.conf)
        if not len(found):
            return []
        if found.landmarks is None or found.landmarks.shape[1] != 5:
            count = 0 if found.landmarks is None else found.landmarks.shape[1]
            raise InputError(
                f"{self.detector.spec.name}: this detector gives {count} landmarks; alignment "
                f"needs 5 (eyes, nose, corners of the mouth), as YuNet gives"
            )
        crops = [align_face(image, points) for points in found.landmarks]
        vectors: list[Embedding] = self.embedder(crops)
        return [
            Face(box, float(score), points, embedding.vector)
            for box, score, points, embedding in zip(
                found.boxes, found.scores, found.landmarks, vectors, strict=True
            )
        ]

    def _gallery(self) -> Gallery:
        if self.gallery is None:
            raise InputError("this pipeline has no gallery: FacePipeline(..., gallery=FOLDER)")
        return self.gallery

    def _open(
        self, model: str | os.PathLike[str] | Model, backend: str, options: RuntimeOptions | None
    ) -> Model:
        if isinstance(model, Model):
            return model
        opened = load(model, backend=backend, options=options)
        self._owned.append(opened)
        return opened

    def _open_gallery(self, gallery: str | os.PathLike[str] | Gallery | None) -> Gallery | None:
        if gallery is None:
            return None
        if isinstance(gallery, Gallery):
            gallery.check_space(self.space)
            return gallery
        opened = Gallery.open(gallery)
        self._owned.append(opened)
        opened.check_space(self.space)
        return opened

    def close(self) -> None:
        """Close what this pipeline has opened itself. Twice does no harm."""
        while self._owned:
            self._owned.pop().close()
