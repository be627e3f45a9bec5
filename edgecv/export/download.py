"""Downloads that are checked, cached, and never seen half done."""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from edgecv.errors import InputError, WeightsError
from edgecv.files import atomic_write, sha256_of
from edgecv.progress import Progress, silent

CONNECT_TIMEOUT = 5.0  # seconds; a machine without a network should say so at once
READ_TIMEOUT = 30.0  # seconds without a single byte
BLOCK = 1 << 18


def cache_folder() -> Path:
    """``$EDGECV_CACHE``, else ``$XDG_CACHE_HOME/edgecv``, else ``~/.cache/edgecv``."""
    if own := os.environ.get("EDGECV_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgecv"


def cached_path(url: str) -> Path:
    """Where the file behind ``url`` lies, or would lie, in the cache."""
    return cache_folder() / "weights" / url.rpartition("/")[2]


def fetch(url: str, sha256: str, progress: Progress = silent) -> Path:
    """The file behind ``url``, from the cache or by download.

    ``sha256`` is the whole digest in hex, or its first 8 digits and more. It is checked before
    the file gets its name, and again whenever the cache is used; a cache entry that does not fit
    is downloaded again. Several processes may do this at once: each writes its own temporary
    file, and the last rename wins with the same bytes.

    Raises :class:`~edgecv.errors.WeightsError` with the ways out.
    """
    path = cached_path(url)
    if path.is_file() and sha256_of(path).startswith(sha256):
        return path
    remedy = (
        f"fetch {url} elsewhere and put it at {path}, or name a file of your own with "
        f"--weights FILE, or take --weights bundled where the recipe has them"
    )
    try:
        with atomic_write(path) as file:
            with _open(url) as response:
                total = int(response.headers.get("Content-Length") or 0)
                done = 0
                while block := response.read(BLOCK):
                    file.write(block)
                    done += len(block)
                    progress(f"downloading {path.name}", done, total)
            if total and done != total:
                raise WeightsError(
                    f"{url}: the download broke off after {done:,} of {total:,} bytes; try again, "
                    f"or {remedy}"
                )
            file.flush()
            got = sha256_of(file.name)
            if not got.startswith(sha256):
                raise WeightsError(
                    f"{url}: expected a file with sha256 {sha256}, got {got} ({done:,} bytes); it "
                    f"is not used: the server, or something between, gave another file; {remedy}"
                )
    except urllib.error.HTTPError as error:
        error.close()  # it is an open response as well
        raise WeightsError(
            f"{url}: the server answered {error.code} {error.reason}; {remedy}"
        ) from error
    except (TimeoutError, urllib.error.URLError, HTTPException, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        what = "took too long" if isinstance(reason, TimeoutError) else f"failed ({reason})"
        raise WeightsError(f"{url}: the download {what}; {remedy}") from error
    except InputError as error:
        raise WeightsError(f"{error} (the cache folder; EDGECV_CACHE names another)") from error
    return path


def _open(url: str) -> HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "edgecv"})
    response: HTTPResponse = urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT)
    raw = getattr(response.fp, "raw", None)
    connection = getattr(raw, "_sock", None)
    if isinstance(connection, socket.socket):
        connection.settimeout(READ_TIMEOUT)  # connected: a slow server may take its time
    return response
