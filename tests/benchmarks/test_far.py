"""The measurements of far stores run, and their tables have what the pages quote."""

import pytest

pytest.importorskip("fsspec", reason="fsspec, which knows URLs, is not installed")
pytest.importorskip("aiohttp", reason="aiohttp, which fsspec asks HTTP servers with, is not installed")

from benchmarks.far import settings
from tests.cells import cells, write


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "ROWS_PER_REQUEST", 64)
    monkeypatch.setattr(settings, "SHAPES", ((16, 4),))
    monkeypatch.setattr(settings, "COST_SIZES", (32, 1))
    monkeypatch.setattr(settings, "ROWS_PER_CHUNK", (8, 16))
    monkeypatch.setattr(settings, "GAPS", (16, 1 << 16))
    monkeypatch.setattr(settings, "REQUESTS", (2, 8))
    write(cells(400), tmp_path / "a.h5ad")
    return [str(tmp_path / "a.h5ad")]


@pytest.mark.parametrize("what", ["gap", "requests", "layout"])
def test_rates(what, files, capsys):
    settings.main([what, *files, "--latencies", "1", "--bandwidth", "0", "--rounds", "1", "--requests", "2"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].startswith("Rows a second")
    rows = [line.strip("| ").split(" | ") for line in lines[4:]]
    assert [row[:2] for row in rows] == [["1 ms", "16 x 4"], *([["local", "16 x 4"]] if what == "layout" else [])]
    assert all(len(row) == 4 for row in rows)


def test_requests_are_counted_by_the_server(files, capsys):
    settings.main(["cost", *files])
    lines = capsys.readouterr().out.strip().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines[2:]]
    assert [row[:2] for row in rows] == [[kind, size] for kind in ("collection", "h5ad") for size in ("32", "1")]
    assert all(float(row[2].replace(",", "")) > 0 for row in rows)
