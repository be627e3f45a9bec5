"""Weights: downloads over a real HTTP server, files of every kind, and what does not fit."""

import hashlib
import http.server
import pickle
import threading
import time
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from edgecv import models  # noqa: E402
from edgecv.errors import WeightsError  # noqa: E402
from edgecv.export import download  # noqa: E402
from edgecv.export.download import cached_path, fetch  # noqa: E402
from edgecv.export.overrides import InputOverrides, recipe_for  # noqa: E402
from edgecv.export.recipe import WeightsSource, load_recipe  # noqa: E402
from edgecv.export.weights import (  # noqa: E402
    load_into,
    load_model,
    read_state_dict,
    resolve,
    write_safetensors,
)

BODY = b"weights" * 50_000
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGECV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server():
    release = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        requests = 0

        def do_GET(self):
            type(self).requests += 1
            if self.path == "/404.pth":
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            if self.path == "/cut.pth":
                self.wfile.write(BODY[:1000])
            elif self.path == "/slow.pth":
                for start in range(0, len(BODY), 100_000):
                    self.wfile.write(BODY[start : start + 100_000])
                    time.sleep(0.05)
            elif self.path == "/stuck.pth":
                release.wait(10)
            else:
                self.wfile.write(BODY)
            return None

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = False  # server_close waits for them
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", Handler
    release.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_download_is_checked_cached_and_reported(server):
    url, handler = server
    seen = []
    path = fetch(f"{url}/a.pth", DIGEST, lambda what, done, total: seen.append((done, total)))
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert fetch(f"{url}/a.pth", DIGEST[:8]) == path
    assert handler.requests == 1
    path.write_bytes(b"damaged")
    assert fetch(f"{url}/a.pth", DIGEST).read_bytes() == BODY
    assert handler.requests == 2


def test_a_slow_server_is_waited_for(server):
    assert fetch(f"{server[0]}/slow.pth", DIGEST).read_bytes() == BODY


def test_two_downloads_at_once(server):
    errors = []

    def work():
        try:
            fetch(f"{server[0]}/slow.pth", DIGEST)
        except WeightsError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert cached_path("x/slow.pth").read_bytes() == BODY


@pytest.mark.parametrize(
    ("name", "digest", "message"),
    [
        ("cut.pth", DIGEST, "broke off after 1,000 of 350,000"),
        ("404.pth", DIGEST, "404"),
        ("wrong.pth", "0" * 64, "expected a file with sha256 0000"),
        ("stuck.pth", DIGEST, "took too long"),
    ],
)
def test_failed_downloads_leave_nothing_and_say_what_to_do(
    server, cache, monkeypatch, name, digest, message
):
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.3)
    with pytest.raises(WeightsError, match=message) as caught:
        fetch(f"{server[0]}/{name}", digest)
    assert "--weights" in str(caught.value) or "try again" in str(caught.value)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_no_network_is_said_at_once():
    with pytest.raises(WeightsError, match="failed"):
        fetch("http://127.0.0.1:9/x.pth", DIGEST)


def offline(recipe, **sources):
    return replace(recipe, weights={**recipe.weights, **sources})


def test_auto_falls_back_to_bundled_with_a_warning_and_another_name():
    dead = WeightsSource(url="http://127.0.0.1:9/x.pth", sha256="0" * 8)
    recipe = offline(load_recipe("mobilenetv2"), imagenet=dead)
    resolved = resolve(recipe, "auto")
    assert resolved.origin == "bundled"
    assert resolved.recipe.name == "mobilenetv2-cifar10"
    assert "mobilenetv2-cifar10" in resolved.warning
    with pytest.raises(WeightsError, match="failed"):
        resolve(recipe, "imagenet")


def test_explicit_choices_are_strict(tmp_path):
    recipe = load_recipe("mobilenetv2")
    with pytest.raises(WeightsError, match="no such file; expected one of auto, imagenet"):
        resolve(recipe, str(tmp_path / "absent.pth"))
    assert resolve(recipe, "random").path is None
    cifar = load_recipe("mobilenetv2-cifar10")
    with pytest.raises(WeightsError, match="names no published weights"):
        resolve(cifar, "imagenet")
    assert resolve(cifar, "auto").origin == "bundled"


@pytest.fixture(scope="module")
def small_state():
    return models.create("mobilenet_v2", 10).state_dict()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_wrappers_are_taken_off(tmp_path, small_state, wrapper, suffix):
    path = tmp_path / f"w{suffix}"
    state = small_state
    if wrapper == "module.":
        state = {f"module.{key}": value for key, value in state.items()}
    if suffix == ".safetensors":
        write_safetensors(state, path, {}, torch.float32)
    else:
        torch.save({wrapper: state} if wrapper in ("state_dict", "model") else state, path)
    loaded = read_state_dict(path)
    model = models.create("mobilenet_v2", 10)
    load_into(model, loaded, str(path))
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, small_state[key]), key


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def bad_files():
    good = models.create("mobilenet_v2", 10).state_dict()

    def torch_save(value):
        return lambda path: torch.save(value, path)

    return {
        "pickled code": (lambda p: p.write_bytes(pickle.dumps(Evil(), 2)), "refused"),
        "zipped code": (torch_save({"x": Evil()}), "refused"),
        "empty": (lambda p: p.write_bytes(b""), "corrupt or cut-off|not a checkpoint"),
        "text": (lambda p: p.write_text("hello there"), "not a checkpoint|corrupt"),
        "lfs": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1"), "git lfs"),
        "a list": (torch_save([1, 2]), "expected a state dict, got list"),
        "numbers": (torch_save({**good, "epoch": 3}), "epoch are something else"),
        "nan": (torch_save({"w": torch.tensor([float("nan")])}), "NaN"),
    }


@pytest.mark.parametrize("kind", list(bad_files()))
def test_bad_files_each_get_their_own_error(tmp_path, capsys, kind):
    write, message = bad_files()[kind]
    path = tmp_path / "w.pth"
    write(path)
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)
    assert "code ran" not in capsys.readouterr().out


def test_numbers_beyond_float16_are_kept(tmp_path):
    state = {"variance": torch.tensor([7e4, 1.0]), "weight": torch.tensor([0.1, 2.0])}
    write_safetensors(state, tmp_path / "w.safetensors", {}, torch.float16)
    found = read_state_dict(tmp_path / "w.safetensors")
    assert torch.equal(found["variance"], state["variance"])
    assert torch.equal(found["weight"], state["weight"].half().float())


def test_cut_off_checkpoints(tmp_path, small_state):
    for name in ("w.pth", "w.safetensors"):
        path = tmp_path / name
        if name.endswith("pth"):
            torch.save(small_state, path)
        else:
            write_safetensors(small_state, path, {}, torch.float16)
        data = path.read_bytes()
        for size in (10, len(data) // 3, len(data) - 100):
            path.write_bytes(data[:size])
            with pytest.raises(WeightsError, match=name):
                read_state_dict(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("features.0.0.weight"), "1 of MobileNetV2's 314 tensors are missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 tensors have no place"),
        (lambda s: s.update({"classifier.1.bias": torch.zeros(3)}), "another shape"),
    ],
)
def test_what_does_not_fit(small_state, change, message):
    state = dict(small_state)
    change(state)
    with pytest.raises(WeightsError, match=message):
        load_into(models.create("mobilenet_v2", 10), state, "w.pth")
    with pytest.raises(WeightsError, match="another architecture"):
        load_into(models.create("mobilenet_v2", 10), {"a": torch.zeros(1)}, "w.pth")


def test_the_class_count_is_the_checkpoints_and_must_equal_the_labels(tmp_path, small_state):
    path = tmp_path / "w.pth"
    torch.save(small_state, path)
    with pytest.raises(WeightsError, match=r"made for 10 classes.*1000 labels.*--labels"):
        load_model(resolve(load_recipe("mobilenetv2"), str(path)))
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"thing {i}\n" for i in range(10)))
    recipe = recipe_for("mobilenetv2", InputOverrides(labels=labels))
    model = load_model(resolve(recipe, str(path)))
    assert not model.training
