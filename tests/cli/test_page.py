"""The HTML report in a browser, and the profile that it draws."""

import dataclasses
import json
import os
import re
import shutil
import subprocess

import pytest

import edgecv
from edgecv.export.recipe import load_recipe
from edgecv.measure.profile import nodes_of
from edgecv.measure.ready import READY_MODEL
from edgecv.onnxgraph import read_graph
from edgecv.spec import read_spec, write_spec
from edgecv.workflows.bench import bench
from edgecv.workflows.report import report_on, write_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """3 models on 2 backends, with layers."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("models")
    spec = read_spec(READY_MODEL)
    paths = [folder / f"model-{index}.onnx" for index in range(3)]
    for path in paths:
        write_spec(READY_MODEL, dataclasses.replace(spec, name=path.stem), path)
    return bench(
        paths, backends=["onnxruntime", "openvino"], threads=1, duration=0.3, profile=True
    ).to_dict()


def test_layers_are_mapped_to_the_files_nodes(data):
    assert data["failures"] == []
    names = {node.name for node in read_graph(READY_MODEL).nodes}
    convolutions = {node.name for node in read_graph(READY_MODEL).nodes if node.op == "Conv"}
    for record in data["records"]:
        layers = record["layers"]
        mapped = {name for layer in layers for name in layer["nodes"]}
        assert mapped <= names
        assert convolutions <= mapped, record["backend"]
        assert sum(layer["share"] for layer in layers) == pytest.approx(1, abs=1e-3)
        macs = sum(layer.get("macs", 0) for layer in layers)
        assert macs == _macs_of_mobilenetv2_at_64()
        assert record["peak_gmacs"] > 0
        assert all(layer["gmacs"] > 0 for layer in layers if "macs" in layer)


def _macs_of_mobilenetv2_at_64():
    """From the paper's table (t, c, n, s), by hand: 64 pixels in, 10 classes out."""
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
             (6, 160, 3, 2), (6, 320, 1, 1)]  # fmt: skip
    spec = {node.name: node for node in read_graph(READY_MODEL).nodes}
    graph = read_graph(READY_MODEL)
    # widths as the file has them; the spatial sizes follow from the strides in order
    size, total = 32, 0
    convs = [node for node in spec.values() if node.op == "Conv"]
    total += size * size * _weights(graph, convs[0])
    index = 1
    for t, _, n, s in table:
        for repeat in range(n):
            if t != 1:
                total += size * size * _weights(graph, convs[index])  # expand
                index += 1
            size = size // s if repeat == 0 else size
            for _part in ("depthwise", "project"):
                total += size * size * _weights(graph, convs[index])
                index += 1
    total += size * size * _weights(graph, convs[index])
    (gemm,) = [node for node in spec.values() if node.op == "Gemm"]
    return total + _weights(graph, gemm)


def _weights(graph, node):
    count = 1
    for size in graph.weight_dims(node):
        count *= size
    return count


def test_names_of_the_runtimes_are_undone():
    graph = read_graph(READY_MODEL)
    conv, clip = graph.nodes[0], graph.nodes[1]
    assert nodes_of(f"{clip.outputs[0]}_nchwc", "Conv", (), graph) == [conv, clip]
    assert nodes_of(f"{conv.name}_token_7", "QLinearConv", (), graph) == [conv]
    assert nodes_of("x", "Convolution", (f"{conv.name}/WithoutBiases", clip.name), graph) == [
        conv,
        clip,
    ]
    assert nodes_of("ReorderOutput", "ReorderOutput", (), graph) == []


def test_fused_dense_layers_and_the_batch_are_counted(tmp_path):
    """onnxruntime calls a Gemm with its Relu "fused NAME"."""
    path = tmp_path / "lenet5.onnx"
    edgecv.export("lenet5", weights="random", batch=None, output=path)
    (record,) = bench(
        [path], backends=["onnxruntime"], threads=1, batch=4, duration=0.1, rounds=5, profile=True
    ).records
    macs = {layer["name"]: layer["macs"] for layer in record["layers"] if "macs" in layer}
    assert sum(macs.values()) == 4 * load_recipe("lenet5").macs
    assert macs["classifier.0/Gemm"] == 4 * 400 * 120


def browser():
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    return found


def run_browser(page, *flags):
    command = [browser(), "--headless", "--disable-gpu", "--hide-scrollbars", "--no-sandbox",
               "--enable-logging=stderr", "--v=0"]  # fmt: skip
    done = subprocess.run(
        [*command, *flags, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_page_in_a_browser(data, tmp_path):
    page = tmp_path / "report.html"
    score = {"schema": "edgecv.eval/1", "sha256": data["records"][0]["sha256"], "top1": 0.9}
    write_html(report_on([data, score]), page)
    assert page.stat().st_size <= 2_000_000
    text = page.read_text()
    # nothing is fetched: no address but the SVG's own, no script, no import
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "@import" not in text
    assert "url(" not in text
    done = run_browser(page, "--dump-dom", "--virtual-time-budget=2000")
    assert "CONSOLE" not in done.stderr  # what a page's errors are logged as
    for title in ("Summary", "Latency distributions", "What a millisecond buys", "Layers",
                  "Environment"):  # fmt: skip
        assert f"<h2>{title}</h2>" in done.stdout
    assert done.stdout.count("<svg") >= 1 + 2 + 6
    assert "top1 90.0%" in done.stdout


@pytest.mark.parametrize("width", [1200, 500])
def test_the_page_is_not_wider_than_the_screen(data, tmp_path, width):
    """Looked at by a script that is put into a copy: the page itself has none."""
    page = tmp_path / "report.html"
    write_html(report_on([data]), page)
    probe = (
        "<script>document.title = JSON.stringify([innerWidth, "
        "document.documentElement.scrollWidth])</script></body>"
    )
    page.write_text(page.read_text().replace("</body>", probe))
    done = run_browser(page, "--dump-dom", f"--window-size={width},900")
    inner, scroll = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert scroll <= inner
    shot = tmp_path / "shot.png"
    run_browser(page, f"--screenshot={shot}", f"--window-size={width},900")
    assert shot.stat().st_size > 20_000  # not a blank page
    if folder := os.environ.get("EDGECV_SCREENSHOTS"):
        shutil.copy(shot, f"{folder}/report-{width}.png")
