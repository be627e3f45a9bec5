"""What a run leaves for people to look at: a log, a picture of its curves, TensorBoard's file."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecv.errors import InputError
from edgecv.files import atomic_write

BOARD = "tensorboard"
NOT_CURVES = ("epoch", "seconds")
REDRAWN = 10.0  # seconds between two pictures of the curves: each takes half of one


class Journal:
    """The files ``log.jsonl``, ``curves.png`` and ``tensorboard/`` in a run's folder."""

    def __init__(self, folder: Path, log: Sequence[Mapping[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.drawn, self.stale = folder, -REDRAWN, False
        self.log: Sequence[Mapping[str, Any]] = log
        with _writing(folder / BOARD):
            # what a killed run wrote after its last checkpoint is dropped
            self.board = SummaryWriter(str(folder / BOARD), purge_step=len(log) + 1)

    def write(self, log: Sequence[Mapping[str, Any]]) -> None:
        """Bring all three up to ``log``, whose last record is new; the curves now and then."""
        with atomic_write(self.folder / "log.jsonl") as file:
            file.write("".join(json.dumps(record) + "\n" for record in log).encode())
        with _writing(self.folder / BOARD):
            for key, value in log[-1].items():
                if key not in NOT_CURVES:
                    self.board.add_scalar(key, value, log[-1]["epoch"])
            self.board.flush()
        self.log, self.stale = log, True
        if time.monotonic() - self.drawn > REDRAWN:
            self._draw()

    def close(self) -> None:
        """The last picture; after an error too."""
        if self.stale:
            self._draw()
        with _writing(self.folder / BOARD):
            self.board.close()

    def _draw(self) -> None:
        draw_curves(self.folder / "curves.png", self.log)
        self.drawn, self.stale = time.monotonic(), False


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """TensorBoard's own writes: a full disk is an error with a remedy there as well."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: could not be written ({error.strerror or error}); free space, or choose "
            f"another output folder; the run goes on from its last checkpoint"
        ) from error


def draw_curves(path: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """One small graph for each number of the log's records, over the epochs."""
    keys = [key for key in log[-1] if key not in NOT_CURVES]
    figure = _figure(len(keys))
    for index, key in enumerate(keys, 1):
        axes = figure.add_subplot(1, len(keys), index)
        epochs = [record["epoch"] for record in log if key in record]
        axes.plot(epochs, [record[key] for record in log if key in record], marker=".")
        axes.set_title(key)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        if key == "lr":
            axes.set_yscale("log")
    _save(figure, path)


def draw_rates(path: Path, rates: Sequence[float], losses: Sequence[float], best: float) -> None:
    """A range test's losses over its rates, with the rate that is proposed."""
    figure = _figure(1, width=6.0)
    axes = figure.add_subplot(1, 1, 1)
    axes.plot(rates, losses)
    axes.axvline(best, linestyle="--", label=f"proposed: {best:.2g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss, smoothed")
    axes.legend()
    axes.grid(alpha=0.3)
    _save(figure, path)


def _figure(columns: int, width: float = 3.6) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width * columns, 3.2), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    with atomic_write(path) as file:
        file.write(picture.getvalue())
