"""What commands print: tables and notes for people, or one JSON object for programs.

Without ``--json`` results go to stdout and progress to stderr. With it stdout gets the JSON object
and nothing else; tables and notes move to stderr.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from edgecv.progress import Progress as ProgressCallback

# characters that a table does not fold: of a figure with its unit, and of a word
FIGURE, WORD = 10, 24

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, no table.")]


class Output:
    """Where one command's words go."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        # soft_wrap: a path or a number that is cut at 80 columns cannot be copied
        self.console = Console(stderr=as_json, soft_wrap=True, highlight=False)
        self.errors = Console(stderr=True, soft_wrap=True, highlight=False)

    def say(self, text: str, style: str = "") -> None:
        """A line for people."""
        self.console.print(Text(text, style=style))

    def note(self, text: str) -> None:
        """A line for people that is no part of the result: on stderr."""
        self.errors.print(Text(text, style="dim"))

    def warn(self, text: str) -> None:
        """A warning that cannot be missed: on stderr, in a box of its own lines."""
        rule = "!" * 72
        self.errors.print(Text(f"{rule}\nWARNING: {text}\n{rule}", style="bold yellow"))

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = ""
    ) -> None:
        """A table for people; columns of which every cell is a number are right-aligned.

        On a narrow terminal cells and headers fold between words. Figures with their unit, words
        up to :data:`WORD` and the first column, which names the row, stay whole, for copying.
        """
        table = Table(title=title or None, title_justify="left", header_style="bold")
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        longest = [max((len(row[i]) for row in cells), default=0) for i in range(len(columns))]
        natural = sum(max(len(name), most) + 3 for name, most in zip(columns, longest, strict=True))
        narrow = natural >= self.console.width
        for index, (name, most) in enumerate(zip(columns, longest, strict=True)):
            numeric = rows and all(isinstance(row[index], int | float) for row in rows)
            words = [word for row in cells for word in row[index].split() if len(word) <= WORD]
            word = max(map(len, [*name.split(), *words]), default=0)
            whole = index == 0 or most <= FIGURE
            table.add_column(
                name,
                justify="right" if numeric else "left",
                overflow="fold",
                width=max(word, most) if whole and narrow else None,
                min_width=word,
            )
        for row in cells:
            table.add_row(*map(Text, row))
        self.console.print(table)

    def pairs(self, pairs: Mapping[str, object], title: str = "") -> None:
        """Names and values, one per line."""
        if title:
            self.say(title, "bold")
        width = max(map(len, pairs), default=0)
        for name, value in pairs.items():
            self.say(f"  {name:<{width}}  {value}")

    def result(self, data: Mapping[str, Any]) -> None:
        """The command's result for programs; printed with ``--json`` only."""
        if self.as_json:
            sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")
            sys.stdout.flush()

    @contextlib.contextmanager
    def progress(self) -> Iterator[ProgressCallback]:
        """A progress bar on stderr; call the callback with (what, done, total)."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.errors, transient=True) as bar:
            tasks: dict[str, Any] = {}

            def update(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=total or None)
                bar.update(tasks[what], completed=done, total=total or None)

            yield update
