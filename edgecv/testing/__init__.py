"""For users' own tests: is the file that we ship still the net that we trained?

::

    from edgecv.testing import assert_parity

    def test_what_we_ship(edgecv_model):
        assert_parity("model-int8.onnx", "reference.npz", data="pictures", min_agreement=0.98)
        assert edgecv_model("model-int8.onnx")("cat.jpg").best.label == "cat"

``reference.npz`` is what ``edgecv verify model.onnx --against RECIPE --data pictures --record
reference.npz`` wrote where torch is installed: the tests themselves need none. The fixture
``edgecv_model`` and the option ``--edgecv-backend`` come with the pytest plug-in
(:mod:`edgecv.testing.plugin`), which is there wherever EdgeCV is installed.
"""

from __future__ import annotations

import os

from edgecv.errors import CheckFailed
from edgecv.workflows.verdict import Verification
from edgecv.workflows.verify import verify

__all__ = ["assert_parity"]


def assert_parity(
    model: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    *,
    backend: str = "auto",
    weights: str | os.PathLike[str] | None = None,
    min_agreement: float | None = None,
    min_cosine: float | None = None,
    max_drop: float | None = None,
    strict_target: bool = False,
    layers: bool = False,
) -> Verification:
    """Fail with an ``AssertionError`` unless ``model`` computes what ``reference`` does.

    The arguments are those of :func:`edgecv.verify`: ``reference`` is an ``.onnx`` file, a ``.npz``
    record, a recipe, or None for the file's own self-test; ``data`` a folder of pictures (seeded
    ones by default). The message names each check that fell short, its figure and its bound.
    Returns the figures. Arguments that cannot be used raise :class:`~edgecv.errors.EdgeCVError`.
    """
    __tracebackhide__ = True  # pytest shows the caller's line, not this one
    try:
        outcome = verify(
            model,
            reference,
            data=data,
            backend=backend,
            weights=weights,
            min_agreement=min_agreement,
            min_cosine=min_cosine,
            max_drop=max_drop,
            strict_target=strict_target,
            layers=layers,
        )
    except CheckFailed as error:
        raise AssertionError(f"{model}: {error}") from error
    if not outcome.passed:
        failed = [
            f"{check.name} is {check.value:.4g}, the bound {check.bound:.4g}"
            for check in outcome.checks
            if not check.passed
        ]
        where = outcome.first_divergent_node
        raise AssertionError(
            f"{model} against {outcome.reference} on {outcome.inputs} ({outcome.backend}): "
            + "; ".join(failed)
            + (f"; first node that diverges: {where}" if where else "")
            + (f"; {outcome.target_note}" if outcome.target_note else "")
        )
    return outcome
