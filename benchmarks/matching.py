"""Exact top-5 among many vectors: EdgeCV, the bare matrix product, NumPy's usual way, FAISS flat.

Each case runs in a fresh process (so that the peak of memory is its own), the contenders in turn
within it: a ratio compares neighbours in time. Seeded unit vectors; warm-up outside the clock.
Whether all find the same five is checked, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP = 5
SIZES = (1_000, 10_000, 100_000, 1_000_000)
WIDTHS = (128, 512)
QUERIES = (1, 32)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def rounds_for(count: int, width: int, queries: int) -> int:
    """About half a second of the bare product, from 9 to 1,000."""
    return max(9, min(1_000, int(5e9 / (count * width * queries))))


def resident_mb() -> float:
    """This process's resident memory in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def one_case(count: int, width: int, queries: int, threads: int) -> dict[str, Any]:
    import numpy as np

    from edgecv.gallery import Index

    rng = np.random.default_rng(0)

    before = resident_mb()
    vectors = rng.standard_normal((count, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    given = resident_mb() - before
    index = Index(vectors)
    kept = resident_mb() - before - given
    asked = rng.standard_normal((queries, width), dtype=np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)

    def usual() -> tuple[Any, Any]:
        scores = asked @ vectors.T
        best = np.argpartition(-scores, TOP - 1, axis=1)[:, :TOP]
        found = np.take_along_axis(scores, best, axis=1)
        order = np.argsort(-found, axis=1)
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(best, order, axis=1)

    contenders: dict[str, Callable[[], Any]] = {
        "edgecv": lambda: index.search(asked, TOP),
        "product": lambda: asked @ vectors.T,
        "numpy": usual,
    }
    versions = {"numpy": np.__version__}
    try:
        import faiss
    except ImportError:
        pass
    else:
        faiss.omp_set_num_threads(threads)
        flat = faiss.IndexFlatIP(width)
        flat.add(vectors)
        contenders["faiss"] = lambda: flat.search(asked, TOP)
        versions["faiss-cpu"] = faiss.__version__
    rows = {name: run()[1] for name, run in contenders.items() if name != "product"}
    agree = all(bool((found == rows["edgecv"]).all()) for found in rows.values())
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds_for(count, width, queries)):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            samples[name].append((time.perf_counter() - start) * 1e3)
    times = {name: summary(values) for name, values in samples.items()}

    def ratio(other: str) -> dict[str, float]:
        pairs = zip(samples["edgecv"], samples[other], strict=True)
        return summary([mine / theirs for mine, theirs in pairs])

    return {
        "vectors": count,
        "width": width,
        "queries": queries,
        "rounds": len(samples["edgecv"]),
        "ms": times,
        "ratio": {f"edgecv / {name}": ratio(name) for name in contenders if name != "edgecv"},
        "same_answers": agree,
        "memory": {"vectors_mb": round(vectors.nbytes / 1e6, 1), "index_mb": round(kept, 1)},
        "versions": versions,
    }


def summary(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "q1": round(low, 4), "q3": round(high, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of BLAS and of FAISS")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="leave out larger sets")
    parser.add_argument("-o", type=Path, help="JSON file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        count, width, queries = map(int, arguments.case.split(","))
        print(json.dumps(one_case(count, width, queries, arguments.threads)))
        return
    threads = str(arguments.threads)
    where = os.environ | dict.fromkeys(THREAD_VARIABLES, threads)
    records = []
    for count in (size for size in SIZES if size <= arguments.most):
        for width in WIDTHS:
            for queries in QUERIES:
                command = [sys.executable, __file__, "--threads", threads]
                command += ["--case", f"{count},{width},{queries}"]
                done = subprocess.run(command, env=where, stdout=subprocess.PIPE, check=True)
                record = json.loads(done.stdout)
                records.append(record)
                ms = "  ".join(f"{n} {v['median']:9.3f}" for n, v in record["ms"].items())
                ratios = "  ".join(f"{n} {v['median']:.2f}" for n, v in record["ratio"].items())
                print(f"{count:9,} x {width}, {queries:2} queries, ms: {ms}   {ratios}", flush=True)
                if arguments.o:
                    write(arguments.o, arguments.threads, records)


def write(path: Path, threads: int, records: list[dict[str, Any]]) -> None:
    """All records so far: a run that is stopped leaves what it has measured."""
    from record import save

    save(path, "matching/1", threads=threads, top=TOP, records=records)


if __name__ == "__main__":
    main()
