"""Files appear whole or not at all, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgecv.errors import InputError
from edgecv.files import atomic_write, open_binary, sha256_of

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions, links or devices")


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """``os.umask``, put back afterwards."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond ``size`` bytes.

    It is the one full disk that a test can have without being root.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write(path: Path, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)


def test_the_file_appears_at_the_end_of_the_block_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "model.onnx"
    with atomic_write(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" whole")
    assert path.read_bytes() == b"half whole"
    assert list(path.parent.iterdir()) == [path]


def test_until_then_the_old_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), ValueError("x"), MemoryError()]
)
@pytest.mark.parametrize("old", [None, b"old"])
def test_an_exception_leaves_nothing_behind_and_passes(
    tmp_path: Path, error: BaseException, old: bytes | None
) -> None:
    path = tmp_path / "model.onnx"
    if old is not None:
        path.write_bytes(old)

    def block() -> None:
        with atomic_write(path) as file:
            file.write(b"x" * 100_000)
            raise error

    with pytest.raises(type(error)) as caught:
        block()
    assert caught.value is error
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["model.onnx"])
    assert old is None or path.read_bytes() == old


def test_an_interrupted_process_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C as it comes: a signal, in the middle of a write."""
    program = (
        "import os, signal, sys\n"
        "from edgecv.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'x' * 100_000)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    file.write(b'x' * 100_000)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model.onnx")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert run.returncode != 0
    assert "KeyboardInterrupt" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_blocks_own_os_error_is_not_taken_for_the_disks(tmp_path: Path) -> None:
    """A download that times out inside the block is no reason to speak of a full disk."""

    def download() -> None:
        with atomic_write(tmp_path / "weights") as file:
            file.write(b"half")
            raise TimeoutError("timed out")

    with pytest.raises(TimeoutError):
        download()
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "weights"):
        (tmp_path / "source").read_bytes()
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("block", [10, 1 << 20], ids=["many small writes", "one large write"])
def test_a_full_disk_is_an_error_with_a_remedy_and_the_old_file_stays(
    tmp_path: Path, block: int
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def fill() -> None:
        with atomic_write(path) as file:
            for _ in range((1 << 20) // block):
                file.write(b"x" * block)

    message = r"model\.onnx: could not be written .*free space"
    with file_size_limit(64 * 1024), pytest.raises(InputError, match=message) as caught:
        fill()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_a_full_disk_is_that_whatever_the_writing_library_raises(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"

    def fill() -> None:
        with atomic_write(path) as file:
            try:
                file.write(b"x" * (1 << 20))
            except OSError as error:  # as torch.save does
                raise RuntimeError("unexpected pos 960 vs 854") from error

    message = r"checkpoint\.pt: could not be written \(File too large\); free space"
    with file_size_limit(64 * 1024), pytest.raises(InputError, match=message):
        fill()
    assert list(tmp_path.iterdir()) == []


@posix
def test_a_disk_that_fills_up_at_the_last_flush(tmp_path: Path) -> None:
    """What fits into the buffer is written when the block is over; that error is the disk's too."""
    path = tmp_path / "model.onnx"
    with file_size_limit(100), pytest.raises(InputError, match="could not be written"):
        write(path, b"x" * 1000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_fails_after_the_last_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match=r"could not be written \(No space left on device\)"):
        write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_and_name_are_flushed_to_the_disk_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def noted_replace(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write(tmp_path / "model.onnx", b"x")
    assert done == (["file", "rename"] if os.name == "nt" else ["file", "rename", "folder"])


def test_a_file_system_that_cannot_flush_a_folder_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write(tmp_path / "model.onnx", b"x")
    assert (tmp_path / "model.onnx").read_bytes() == b"x"


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o000])
def test_a_new_file_has_the_permissions_of_the_umask(
    tmp_path: Path, umask: Callable[[int], int], mask: int
) -> None:
    umask(mask)
    write(tmp_path / "new", b"x")
    (tmp_path / "plain").write_bytes(b"x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "plain")]
    assert modes == [0o666 & ~mask] * 2


@posix
def test_a_file_that_is_replaced_keeps_its_permissions(
    tmp_path: Path, umask: Callable[[int], int]
) -> None:
    umask(0o022)
    path = tmp_path / "gallery.npz"
    path.write_bytes(b"old")
    for mode in (0o600, 0o664, 0o444):
        path.chmod(mode)
        with atomic_write(path) as file:
            (part,) = (p for p in tmp_path.iterdir() if p != path)
            assert stat.S_IMODE(part.stat().st_mode) == mode  # before any content is in it
            file.write(b"new")
        assert stat.S_IMODE(path.stat().st_mode) == mode


@posix
def test_the_umask_of_the_process_is_never_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It belongs to all threads: to read it is to set it for a moment, for everyone."""

    def touched(mask: int) -> int:
        raise AssertionError(f"umask({mask:o})")

    monkeypatch.setattr(os, "umask", touched)
    write(tmp_path / "model.onnx", b"x")
    write(tmp_path / "model.onnx", b"y")


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    contents = [bytes([i]) * 300_000 for i in range(8)]
    threads = [threading.Thread(target=write, args=(path, data)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".onnx")
    write(path, b"x")
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "v1.onnx", tmp_path / "current.onnx"
    target.write_bytes(b"old")
    link.symlink_to(Path("store") / "v1.onnx")
    write(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    link.unlink()
    link.symlink_to(tmp_path / "store" / "v2.onnx")  # to a file that is not there yet
    write(link, b"newer")
    assert (tmp_path / "store" / "v2.onnx").read_bytes() == b"newer"
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["v1.onnx", "v2.onnx"]


@posix
def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match="could not be written"):
        write(tmp_path / "a", b"x")


def test_a_path_below_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InputError, match=r"file.model\.onnx: could not be written"):
        write(tmp_path / "file" / "model.onnx", b"x")
    with pytest.raises(InputError, match="could not be written"):
        write(tmp_path / "file" / "folder" / "model.onnx", b"x")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        write(tmp_path, b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_null_character_in_the_name(tmp_path: Path) -> None:
    for call in (lambda p: write(p, b"x"), open_binary, sha256_of):
        with pytest.raises(InputError, match="null"):
            call(tmp_path / "a\0b")


@posix
def test_a_device_or_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="not a regular file"):
        write(pipe, b"x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(InputError, match="not a regular file"):
        write(Path(os.devnull), b"x")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    assert sha256_of(str(tmp_path / "file")) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("call", [open_binary, sha256_of])
def test_a_file_that_cannot_be_read(tmp_path: Path, call: Callable[[Path], object]) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        call(tmp_path / "none")
    with pytest.raises(InputError, match="is a folder"):
        call(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InputError, match=r"cannot be read|there is no such file"):
        call(tmp_path / "file" / "below")


@posix
@pytest.mark.timeout(20)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        open_binary(tmp_path / "pipe")
