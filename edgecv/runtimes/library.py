"""Importing a runtime's package, whatever state its installation is in."""

from __future__ import annotations

import importlib
from typing import Any

from edgecv.errors import BackendUnavailable


def import_library(package: str, attribute: str) -> Any:
    """The module of ``package``, which has ``attribute``.

    Raises :class:`~edgecv.errors.BackendUnavailable` with the reason. A package that was installed
    over another and then uninstalled leaves a folder of its name, which imports and holds nothing.
    """
    try:
        module = importlib.import_module(package)
    except Exception as error:  # of a broken installation anything: OSError, AttributeError, ...
        raise BackendUnavailable(f"the package {package} does not import ({error})") from error
    if not hasattr(module, attribute):
        where = getattr(module, "__file__", None) or ", ".join(getattr(module, "__path__", ()))
        raise BackendUnavailable(
            f"the package {package} is damaged: {where} has no {attribute}; uninstall all that "
            f"brings it, remove what is left there, and install it again"
        )
    return module
