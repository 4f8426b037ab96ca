"""The page about layout can be written again from what was measured."""

from __future__ import annotations

import json

import pytest

from benchmarks.layout import draw

LAYOUT = {"codec": "lz4hc", "level": 2, "values": "uint16", "rates": {"1": [1e5, 2e5, 4e5], "512": [3e5, 5e5, 4e5]}}
RESULTS = {
    "command": "python -m benchmarks.layout.measure 8",
    "cells": 8,
    "cpus": 2,
    "rounds": 3,
    "default": {"rows_per_chunk": 8, "codec": "lz4hc", "level": 2},
    "codecs_at": 16,
    "chunks": [
        {"codec": "lz4hc", "level": 2, "array": "values", "dtype": d, "bytes": 0.6, "write": 100.0, "read": 900.0}
        for d in ("uint16", "float32")
    ],
    "layouts": [
        {**LAYOUT, "rows_per_chunk": 8, "bytes": 2_000_000},
        {**LAYOUT, "rows_per_chunk": 16, "bytes": 1_500_000},
        {**LAYOUT, "rows_per_chunk": 16, "bytes": 3_000_000, "values": "float32"},
    ],
    "build": {
        "values": 10**6,
        "given_bytes": 10**7,
        "stored_bytes": 10**6,
        "seconds": 2.0,
        "peak_bytes": 2e8,
        "tahoe": {"cells": 10**8, "values_a_cell": 1460, "datasets": 59, "plan_bytes": 4e8, "sorted_plan_bytes": 9e8},
    },
}


def test_the_page_is_written_from_what_was_saved(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    page = tmp_path / "collections.md"
    page.write_text(f"before\n{draw.BEGIN}\nold\n{draw.END}\nafter\n")
    monkeypatch.setattr(draw, "PAGE", page)
    monkeypatch.setattr(draw, "RESULTS", tmp_path / "results.json")
    for _ in range(2):  # the second time it replaces what it wrote
        draw.write_page(json.loads(json.dumps(RESULTS)))
    text = page.read_text()
    assert text.startswith("before\n<!--")
    assert text.endswith("-->\nafter\n")
    assert "old" not in text
    assert text.count("| 8 rows, lz4hc 2, uint16 (default) | 2 | 200 (100 to 400) | 400 (300 to 500) |") == 1
    assert "16 rows, lz4hc 2, float32 |" in text
    assert "chunks of 16 rows, one thread" in text
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert "<svg" in (tmp_path / "plot.svg").read_text()
