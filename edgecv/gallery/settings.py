"""What a gallery holds beside vectors: whose embeddings they are, and how they are judged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from edgecv.errors import InputError, SpecError
from edgecv.gallery.likeness import OPTION, Likeness
from edgecv.gallery.metrics import Weights, check_metric, check_weights
from edgecv.jsonobject import JsonObject
from edgecv.spec import NET_COLOR, PARENT_MEAN, PIXELS_IN, ModelSpec, Preparation

POOLINGS = ("best", "mean")
# Not part of the space: the order of the axes carries the same pixels
_TRANSPORT = {"layout"}


@dataclass(frozen=True)
class Space:
    """Where vectors may be compared: one net's weights, one preparation, one alignment.

    ``weights`` is the sha256 of the weights that the net was exported from, which its FP16 and
    INT8 files keep in their provenance: all of them share one space. ``preparation`` holds what
    differs from the defaults, so that a new optional field of the contract changes no space; an
    INT8 file's mean is its parent's, which quantization may have moved to a whole level.
    ``alignment`` names the template that faces were aligned to; ``None``: pictures as they came.

    A learned likeness is no part of it: another one measures the same vectors otherwise. A gallery
    that compares by one keeps it beside the threshold that was chosen for it (:class:`Settings`).
    """

    weights: str
    dimension: int
    preparation: Mapping[str, Any] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    alignment: str | None = None

    @classmethod
    def of(cls, spec: ModelSpec, alignment: str | None = None) -> Space:
        """The space of the embedding net with this contract.

        Raises :class:`~edgecv.errors.InputError` where it is no embedding net, or its provenance
        does not say which weights it was made from.
        """
        if spec.task != "embed":
            raise InputError(
                f"{spec.name}: a gallery needs a model of task 'embed', this one's is {spec.task!r}"
            )
        weights = spec.provenance.get("weights")
        sha256 = weights.get("sha256") if isinstance(weights, Mapping) else None
        if not isinstance(sha256, str):
            raise InputError(
                f"{spec.name}: its provenance does not say which weights it was made from, so its "
                f"vectors cannot be told from another net's; export or adopt it again"
            )
        size = spec.outputs[0].shape[-1]
        if not isinstance(size, int):
            raise InputError(f"{spec.name}: its output has no fixed length, but {size!r}")
        decoding = {key: v for key, v in spec.decoding.options.items() if key != OPTION}
        p = _as_the_net_was_made(spec)
        quantization = JsonObject(spec.quantization, f"{spec.name}: quantization")
        p = replace(p, mean=quantization.floats(PARENT_MEAN, p.mean))
        return cls(sha256, size, _unusual(p), decoding, alignment)

    def check(self, other: Space, where: str) -> None:
        """Refuse vectors of ``other`` in the gallery ``where``, saying in what they differ."""
        mine, theirs = asdict(self), asdict(other)
        different = [key for key in mine if _plain(mine[key]) != _plain(theirs[key])]
        if different:
            parts = [f"{key} {_short(mine[key])} here, {_short(theirs[key])}" for key in different]
            raise InputError(
                f"{where}: this gallery belongs to another model ({'; '.join(parts)} in the "
                f"model); use the model it was made with, or enrol everyone into a new gallery"
            )


def comparison(spec: ModelSpec, metric: str | None = None) -> tuple[str, Likeness | None]:
    """How embeddings of the net with this contract are compared: the metric, and its weights.

    By default by the likeness that it has learned, or else by cosine. Raises
    :class:`~edgecv.errors.InputError` where ``metric`` asks for a likeness and it has none.
    """
    likeness = Likeness.of(spec)
    if metric is None:
        metric = "cosine" if likeness is None else "likeness"
    check_metric(metric)
    if metric != "likeness":
        return metric, None
    if likeness is None:
        raise InputError(
            f"{spec.name}: this file carries no learned likeness: a Siamese pair trained with "
            f'metric.loss = "likeness" and then exported does; compare by another metric'
        )
    return metric, likeness


def _as_the_net_was_made(spec: ModelSpec) -> Preparation:
    """The preparation, of a file that takes a camera's order of channels that of its net."""
    p = spec.preparation
    for name, place in (("provenance", spec.provenance), ("quantization", spec.quantization)):
        taken = place.get(PIXELS_IN)
        if isinstance(taken, Mapping):
            where = f"{spec.name}: {name}.{PIXELS_IN}"
            made_for = JsonObject(taken, where).get(NET_COLOR, str, p.color)
            return p if made_for == p.color else p.swapped
    return p


def _unusual(preparation: Preparation) -> dict[str, Any]:
    found = {}
    for item in fields(preparation):
        value = getattr(preparation, item.name)
        if item.name not in _TRANSPORT and (item.default is MISSING or value != item.default):
            found[item.name] = list(value) if isinstance(value, tuple) else value
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


@dataclass(frozen=True)
class Settings:
    """How a gallery decides.

    A score is accepted from ``threshold`` on (at least it for cosine and likeness, at most it for
    distances), and only where the best person is better than the second by ``margin`` or more, in
    the unit of ``metric``. A person with several pictures scores as the ``best`` of them, or as the
    ``mean`` of their vectors. ``weights``: chi-square's, or the learned likeness. ``origin``: how
    the threshold was found.
    """

    space: Space
    metric: str = "cosine"
    threshold: float | None = None
    margin: float = 0.0
    pooling: str = "best"
    weights: tuple[float, ...] | Likeness | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_metric(self.metric)
        check_weights(self.weights, self.metric, self.space.dimension)
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling must be {' or '.join(POOLINGS)}; got {self.pooling!r}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InputError(f"the threshold must be a finite number, got {self.threshold}")
        if self.threshold is not None and self.metric == "cosine" and abs(self.threshold) > 1:
            raise InputError(f"a cosine threshold lies from -1 to 1, got {self.threshold:g}")
        if (
            self.threshold is not None
            and self.metric == "likeness"
            and not 0 <= self.threshold <= 1
        ):
            raise InputError(f"a likeness threshold lies from 0 to 1, got {self.threshold:g}")
        if self.threshold is not None and self.metric != "cosine" and self.threshold < 0:
            raise InputError(f"a distance is never below 0, got the threshold {self.threshold:g}")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise InputError(f"the margin must be a finite number from 0 up, got {self.margin}")

    @cached_property
    def factors(self) -> Weights:
        """:attr:`weights` as comparing takes them: every query asks for them."""
        return check_weights(self.weights, self.metric, self.space.dimension)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> Settings:
        """Read :meth:`to_dict`'s; anything else is an :class:`~edgecv.errors.InputError`."""
        try:
            space = data["space"]
            weights = data.get("weights")
            threshold = data.get("threshold")
            return cls(
                space=Space(
                    str(space["weights"]),
                    int(space["dimension"]),
                    dict(space["preparation"]),
                    dict(space["decoding"]),
                    space["alignment"],
                ),
                metric=str(data["metric"]),
                threshold=None if threshold is None else float(threshold),
                margin=float(data["margin"]),
                pooling=str(data["pooling"]),
                weights=_weights(weights),
                origin=dict(data.get("origin", {})),
            )
        except (InputError, SpecError) as error:
            raise InputError(
                f"{where}: the gallery's settings are damaged, or of a newer EdgeCV ({error})"
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{where}: the gallery's settings are damaged ({type(error).__name__}: {error}); "
                f"restore it from a copy"
            ) from error


def _weights(given: Any) -> tuple[float, ...] | Likeness | None:
    if isinstance(given, Mapping):
        return Likeness.read(JsonObject(given, "weights"))
    return None if given is None else tuple(float(w) for w in given)
