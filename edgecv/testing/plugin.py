"""The pytest plug-in: the fixture ``edgecv_model`` and the option ``--edgecv-backend``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from edgecv.model import Model


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("edgecv").addoption(
        "--edgecv-backend",
        default="auto",
        metavar="NAME",
        help="what edgecv_model opens models on: a name of `edgecv backends` (default: auto)",
    )


@pytest.fixture(scope="session")
def edgecv_backend(request: pytest.FixtureRequest) -> str:
    """The value of ``--edgecv-backend``, to hand on to :func:`edgecv.testing.assert_parity`."""
    return str(request.config.getoption("--edgecv-backend"))


@pytest.fixture
def edgecv_model(edgecv_backend: str) -> Iterator[Callable[[str | os.PathLike[str]], Model]]:
    """``edgecv_model(path)`` opens a model on ``--edgecv-backend`` and closes it after the test.

    A backend that is not usable fails the test, with what to do: a skip would pass for a proof.
    """
    from edgecv.model import load  # not before a test asks: pytest loads this for every project

    with contextlib.ExitStack() as stack:
        yield lambda path: stack.enter_context(load(path, backend=edgecv_backend))
