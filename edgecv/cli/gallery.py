"""``edgecv gallery``: enrol, identify, verify, list, remove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecv.cli.options import BackendOption, MetricOption
from edgecv.cli.output import JsonOption, Output
from edgecv.errors import CheckFailed, InputError

app = typer.Typer(
    name="gallery",
    help="Enrol people, and recognize them. A photograph is taken for the person it shows.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

GalleryArgument = Annotated[
    str, typer.Argument(metavar="GALLERY", help="A folder, or a Milvus URI (http://..., FILE.db).")
]
ModelOption = Annotated[
    Path, typer.Option("--model", "-m", metavar="FILE", help="The embedding net.")
]
DetectorOption = Annotated[
    Path | None,
    typer.Option("--detector", "-d", metavar="FILE", help="Finds faces; none: aligned crops."),
]
LargestOption = Annotated[
    bool, typer.Option("--largest", help="Of several faces take the largest.")
]
ConfOption = Annotated[float | None, typer.Option(help="Least score of a face.")]


@app.command()
def enrol(
    where: GalleryArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose pictures they are.")],
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...")],
    model: ModelOption,
    detector: DetectorOption = None,
    add: Annotated[bool, typer.Option("--add", help="More pictures of somebody enrolled.")] = False,
    largest: LargestOption = False,
    threshold: Annotated[float | None, typer.Option(help="The score that is accepted.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Labelled pairs to find the threshold on.")
    ] = None,
    far: Annotated[
        float, typer.Option(help="False-accept rate wanted of a threshold from --pairs.")
    ] = 0.001,
    margin: Annotated[
        float | None, typer.Option(help="How much better than the second the best must be.")
    ] = None,
    metric: MetricOption = None,
    pooling: Annotated[
        str | None, typer.Option(help="Several pictures of a person: best or mean.")
    ] = None,
    conf: ConfOption = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Add a person by one picture or more; the gallery is made if it is not there."""
    from edgecv.faces import FacePipeline
    from edgecv.workflows.gallery import found_threshold, metric_of, open_or_create

    if threshold is not None and pairs is not None:
        raise InputError("--threshold states the threshold and --pairs finds it: give one of them")
    out = Output(as_json)
    origin: dict[str, object] = {"given": True}
    if pairs is not None:
        metric = metric_of(where, metric)
        with out.progress() as progress:
            threshold, origin = found_threshold(
                model, detector, pairs, far, backend, metric, progress
            )
    with FacePipeline(detector, model, backend=backend, conf=conf) as pipeline:
        faces = [pipeline.one(picture, largest=largest) for picture in pictures]
        gallery, made = open_or_create(
            where,
            pipeline,
            name,
            extend=add,
            threshold=threshold,
            origin=origin,
            margin=margin,
            metric=metric,
            pooling=pooling,
        )
        with gallery:
            gallery.enrol(name, [face.vector for face in faces], extend=add)
            settings = gallery.settings
    out.say(f"{where}: {name} enrolled by {len(faces)} picture{'s' if len(faces) > 1 else ''}")
    if made or threshold is not None:
        out.say(f"threshold {settings.threshold:.4f} ({settings.metric}), margin {settings.margin}")
    out.result(
        {
            "gallery": where,
            "name": name,
            "created": made,
            "faces": [
                {"source": str(picture), **face.to_dict()}
                for picture, face in zip(pictures, faces, strict=True)
            ],
            "settings": settings.to_dict(),
        }
    )


@app.command()
def identify(
    where: GalleryArgument,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...")],
    model: ModelOption,
    detector: DetectorOption = None,
    conf: ConfOption = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Who is in these pictures. Not recognized is an answer, too: exit 0 if all could be read."""
    from edgecv.faces import FacePipeline
    from edgecv.preprocess import open_picture

    out = Output(as_json)
    results, failed = [], []
    with FacePipeline(detector, model, gallery=where, backend=backend, conf=conf) as pipeline:
        for picture in pictures:
            try:
                opened = open_picture(picture)
            except InputError as error:  # the others are answered all the same
                out.errors.print(f"not read: {error}", style="red", markup=False)
                failed.append({"source": str(picture), "error": str(error)})
                continue
            faces = pipeline(opened)
            for face in faces:
                out.say(f"{picture}: {face}")
            if not faces:
                out.say(f"{picture}: no face")
            results.append({"source": str(picture), "faces": [face.to_dict() for face in faces]})
    out.result({"gallery": where, "results": results, "failed": failed})
    if failed and as_json:
        raise typer.Exit(InputError.exit_code)
    if failed:
        raise InputError(
            f"{len(failed)} of {len(pictures)} pictures could not be read (named above)"
        )


@app.command()
def verify(
    where: GalleryArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is said to be.")],
    picture: Annotated[Path, typer.Argument(metavar="PICTURE")],
    model: ModelOption,
    detector: DetectorOption = None,
    largest: LargestOption = False,
    conf: ConfOption = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Whether a picture is of this person. Exit 1 where it is not."""
    from edgecv.faces import FacePipeline

    out = Output(as_json)
    with FacePipeline(detector, model, gallery=where, backend=backend, conf=conf) as pipeline:
        found = pipeline.verify(name, picture, largest=largest)
    out.say(f"{picture}: {name}: {found}")
    out.result({"gallery": where, "name": name, "source": str(picture), **found.to_dict()})
    if not found.same:
        raise typer.Exit(CheckFailed.exit_code)


@app.command(name="list")
def list_people(where: GalleryArgument, as_json: JsonOption = False) -> None:
    """Everyone enrolled, and how the gallery decides."""
    from edgecv.gallery import Gallery

    out = Output(as_json)
    with Gallery.open(where) as gallery:
        people, settings = gallery.people(), gallery.settings
    out.table(["name", "pictures"], list(people.items()))
    threshold = "none" if settings.threshold is None else f"{settings.threshold:.4f}"
    out.say(
        f"{_people(len(people))}; {settings.metric}, threshold {threshold}, margin "
        f"{settings.margin:g}, {settings.pooling} of several pictures"
    )
    out.result(
        {
            "gallery": where,
            "people": [{"name": name, "pictures": count} for name, count in people.items()],
            "settings": settings.to_dict(),
        }
    )


@app.command()
def remove(
    where: GalleryArgument,
    names: Annotated[list[str], typer.Argument(metavar="NAME...")],
    as_json: JsonOption = False,
) -> None:
    """Erase people, their vectors from the disk too."""
    from edgecv.gallery import Gallery

    out = Output(as_json)
    with Gallery.open(where) as gallery:
        count = gallery.remove(*names)
        left = len(gallery.people())
    out.say(f"{where}: {', '.join(names)} removed ({count} pictures); {_people(left)} left")
    out.result({"gallery": where, "removed": names, "pictures": count, "people": left})


def _people(count: int) -> str:
    return "1 person" if count == 1 else f"{count} people"
