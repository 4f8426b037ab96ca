"""How long importing takes in a process that has imported nothing else."""

import sys
import time

start = time.perf_counter()
import annbatch  # noqa: E402

imported = time.perf_counter()
annbatch.Loader  # noqa: B018
annbatch.DatasetCollection  # noqa: B018
with_classes = time.perf_counter()

from stopwatch import report  # noqa: E402

heavy = [name for name in ("torch", "dask", "jax", "cupy") if name in sys.modules]
report(seconds=imported - start, seconds_with_classes=with_classes - start, heavy_modules=heavy)
