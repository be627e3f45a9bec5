"""``edgecv report``: files of ``bench -o`` and ``eval -o`` of any number of machines in one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from edgecv.errors import InputError
from edgecv.files import atomic_write
from edgecv.measure.page import page
from edgecv.measure.record import SCHEMA, read_json_object, read_report
from edgecv.measure.report import EVAL_SCHEMA, Report, markdown, merge


def report(files: Sequence[str | os.PathLike[str]]) -> Report:
    """Merge the files by the models' sha256 (:func:`edgecv.measure.report.merge`).

    A file that is neither a benchmark nor an evaluation is an
    :class:`~edgecv.errors.InputError` that names it.
    """
    data = []
    for path in files:
        found = read_json_object(path)
        schema = found.get("schema")
        if schema not in (SCHEMA, EVAL_SCHEMA):
            raise InputError(
                f"{path}: expected a file of `edgecv bench -o` ({SCHEMA}) or `edgecv eval -o` "
                f"({EVAL_SCHEMA}), got the schema {schema!r}"
            )
        data.append(read_report(path) if schema == SCHEMA else found)
    return report_on(data)


def report_on(data: Sequence[Mapping[str, Any]]) -> Report:
    """The same for what is in memory already."""
    return merge(data)


def write_html(merged: Report, path: str | os.PathLike[str]) -> None:
    """One self-contained page."""
    with atomic_write(path) as file:
        file.write(page(merged).encode())


def write_markdown(merged: Report, path: str | os.PathLike[str]) -> None:
    """Tables for a README."""
    with atomic_write(path) as file:
        file.write(markdown(merged).encode())
