"""A backend for the tests of applications: no runtime, the contract's shapes, known answers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from edgecv.runtimes.base import Array, Backend, Compute, Opened, Probe, RuntimeInfo
from edgecv.spec import read_spec


class FakeBackend(Backend):
    """Gives each output its declared shape, filled by a seeded generator from the feeds' bytes.

    The same feeds give the same answers, on every machine; different feeds give different ones.
    The file must carry an EdgeCV contract, which is where names and shapes come from; symbolic
    sizes other than the feeds' own become 1.
    """

    name: ClassVar[str] = "fake"
    has_dla: ClassVar[bool] = True  # an application's own options can be tested as they are

    @classmethod
    def probe(cls) -> Probe:
        return Probe(True, version="1", devices=("none",), precisions=("fp32",))

    def _open(self) -> Opened:
        spec = read_spec(self.path)
        info = RuntimeInfo(self.name, "1", "none", 1, read=lambda: Compute("fake", {}))
        return Opened(spec.inputs, spec.outputs, info)

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        sizes: dict[str, int] = {}
        seed = 0
        for tensor in self.inputs:
            array = feeds[tensor.name]
            seed = zlib.crc32(array.tobytes(), seed)
            sizes |= {s: n for s, n in zip(tensor.shape, array.shape) if isinstance(s, str)}  # noqa: B905
        rng = np.random.default_rng(seed)
        return {
            out.name: rng.standard_normal(
                [sizes.get(size, 1) if isinstance(size, str) else size for size in out.shape]
            ).astype(out.dtype)
            for out in self.outputs
        }

    def _close(self) -> None:
        """Nothing was taken."""
