"""The ``edgecv`` command: registers the subcommands and maps errors to exit codes."""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from edgecv.errors import EdgeCVError

# what a package is missing from, by its name
EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors"), "export"),
    **dict.fromkeys(
        ("accelerate", "kornia", "pytorch_metric_learning", "matplotlib", "tensorboard", "tomli_w"),
        "train",
    ),
}


class _Group(TyperGroup):
    """Maps our errors to exit codes; usage errors are typer's own to show."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeCVError as error:
            _fail(error.exit_code, type(error).__name__, str(error))
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            _fail(
                2,
                "MissingExtra",
                f"this command needs the package {error.name}, which is not installed: "
                f"pip install 'edgecv[{extra}]' (not needed on a device that only runs models)",
            )
        except KeyboardInterrupt:
            _fail(130, "Interrupted", "interrupted; nothing half written is left behind")


app = typer.Typer(
    name="edgecv",
    cls=_Group,
    help="From a PyTorch vision model to a device, with proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _register() -> None:
    """Commands in the order of a session; each module imports its workflow when it is called."""
    from edgecv.cli import (
        adopt,
        backends,
        bench,
        build,
        doctor,
        evaluate,
        export,
        gallery,
        inspect,
        models,
        predict,
        quantize,
        report,
        samples,
        train,
        verify,
    )

    commands: dict[str, Callable[..., Any]] = {
        "export": export.command,
        "quantize": quantize.command,
        "adopt": adopt.command,
        "inspect": inspect.command,
        "predict": predict.command,
        "eval": evaluate.command,
        "verify": verify.command,
        "bench": bench.command,
        "build": build.command,
        "report": report.command,
        "train": train.command,
        "models": models.command,
        "backends": backends.command,
        "doctor": doctor.command,
        "samples": samples.command,
    }
    for name, command in commands.items():
        app.command(name)(command)
    app.add_typer(gallery.app)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Show the version and exit."),
) -> None:
    if version:
        from edgecv import __version__

        typer.echo(f"edgecv {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


_register()


def main() -> None:
    """Entry point. Exit 0 done, 1 a check failed, 2 bad input or usage, 3 no such backend here."""
    try:
        app()
    except Exception as error:
        with tempfile.NamedTemporaryFile(
            "w", prefix="edgecv-error-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            traceback.print_exc(file=file)
        _fail(
            2,
            "InternalError",
            f"{type(error).__name__}: {error}\nThis is a bug in EdgeCV. Please report it with the "
            f"command and the file {file.name}",
        )


def _fail(code: int, kind: str, message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps({"error": {"type": kind, "message": message}}) + "\n")
    sys.exit(code)
