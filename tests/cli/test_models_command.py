"""``edgecv models``: the list, and the layers of one net."""

import json
import subprocess
import sys

import pytest

from edgecv.cli.output import Output


def run(*arguments):
    command = [sys.executable, "-c", "from edgecv.cli.app import main; main()", "models"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True)


def test_the_list_has_costs_sizes_and_sources():
    done = run("--json")
    assert done.returncode == 0
    models = {model["name"]: model for model in json.loads(done.stdout)["models"]}
    resnet = models["resnet50"]
    assert (resnet["parameters"], resnet["macs"]) == (25_557_032, 4_089_184_256)
    assert resnet["published_top1"] == {"imagenet": 0.7613}
    assert resnet["sources"]["imagenet"].startswith("https://")
    assert models["unet"]["task"] == "segment"
    assert models["mobilenetv2"]["sources"]["bundled"] == "mobilenetv2-cifar10"
    assert all(all(model["sources"].values()) for model in models.values())


def test_one_net_says_where_its_weights_are_from():
    done = run("mobilenetv2")
    assert done.returncode == 0
    for part in (
        "IMAGENET1K_V1; BSD-3-Clause; https://",
        "the recipe mobilenetv2-cifar10",
        "71.88%",
    ):
        assert part in done.stdout


def test_timms_names_are_known_too():
    done = run("MobileNetV1-100", "--json")
    assert json.loads(done.stdout)["models"][0]["name"] == "mobilenetv1"


def test_the_layers_of_a_net():
    done = run("mobilenetv1", "--layers", "--json")
    assert done.returncode == 0
    data = json.loads(done.stdout)
    assert data["parameters"] == sum(layer["parameters"] for layer in data["layers"]) == 4_231_976
    assert data["layers"][0]["shape"] == [32, 112, 112]
    assert len(data["depthwise_separable"]) == 13
    assert "1 / C_out + 1 / f^2" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers"], "needs the name of a model"),
        (["resnet51"], "did you mean resnet50"),
        (["mobilnetv1", "--layers"], "did you mean mobilenetv1"),
    ],
)
def test_mistakes(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_no_figure_is_folded_on_a_terminal_of_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    Output(as_json=False).table(
        ["name", "parameters", "MACs", "both, multiply-adds", "why"],
        [["features.17.conv.1.0", "61.10 M", "714.19 M", "135,475,200", "a sentence of " * 5]],
    )
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for whole in ("features.17.conv.1.0", "61.10 M", "714.19 M", "135,475,200", "parameters"):
        assert whole in text
