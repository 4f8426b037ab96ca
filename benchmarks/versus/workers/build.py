"""``DatasetCollection.add_adatas`` with its defaults: time, peak memory, size on disk; the same lines for both sides."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
from stopwatch import parameters, report

from annbatch import DatasetCollection


def main() -> None:
    given = parameters()
    if given["side"] == "peer":  # as its documentation asks for local files
        import zarr

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    out = Path(given["out"])
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    DatasetCollection(out).add_adatas(given["paths"], rng=np.random.default_rng(0))
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if not given.get("keep", False):
        shutil.rmtree(out)
    report(seconds=seconds, size_on_disk=size)


if __name__ == "__main__":
    main()
