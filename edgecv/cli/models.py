"""``edgecv models``."""

from __future__ import annotations

from edgecv.cli.output import JsonOption, Output


def command(as_json: JsonOption = False) -> None:
    """List the models that `edgecv export` knows by name."""
    from edgecv.export.recipe import list_recipes, load_recipe

    out = Output(as_json)
    recipes = [load_recipe(name) for name in list_recipes()]
    rows, data = [], []
    for recipe in recipes:
        p = recipe.preparation
        published = {name: w.top1 for name, w in recipe.weights.items() if w.top1 is not None}
        accuracy = ", ".join(f"{top1:.2%} ({name})" for name, top1 in published.items())
        size = f"{p.width}x{p.height}"
        rows.append(
            [
                recipe.name,
                recipe.summary,
                size,
                len(recipe.labels),
                ", ".join(recipe.weights),
                accuracy,
            ]
        )
        data.append(
            {
                "name": recipe.name,
                "summary": recipe.summary,
                "model": recipe.source,
                "task": recipe.task,
                "input": [p.height, p.width],
                "classes": len(recipe.labels),
                "weights": list(recipe.weights),
                "published_top1": published,
            }
        )
    out.table(["name", "what", "input", "classes", "weights", "published top-1"], rows)
    out.result({"models": data})
