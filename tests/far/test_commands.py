"""The command line on URLs."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest

from annbatch.cli import main
from annbatch.commands import bench

pytest.importorskip("fsspec", reason="fsspec, which knows URLs, is not installed")
pytest.importorskip("aiohttp", reason="aiohttp, which fsspec asks HTTP servers with, is not installed")


@pytest.mark.parametrize("name", ["cells.zarr", "cells_0.h5ad"])
def test_info(name, server, folder, capsys):
    found = []
    for path in (f"{server.url}/{name}", str(folder / name)):
        assert main(["info", path, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    far, local = found
    assert far.pop("bytes_on_disk") is None
    del far["path"], local["path"], local["bytes_on_disk"]
    assert far == local
    assert main(["info", f"{server.url}/{name}"]) == 0
    assert "rows x 40 genes\n" in capsys.readouterr().out


@pytest.fixture
def clock(monkeypatch):
    """Time passes by the batch, a millisecond each: what is read in 0.05 seconds is not a matter of the machine."""
    now = itertools.count()
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(now) / 1000))


@pytest.mark.usefixtures("clock")
def test_bench_says_how_many_requests_to_make_and_what_they_cost(server, capsys):
    given = ["bench", f"{server.url}/cells.zarr", "--batch-size", "50", "--seconds", "0.05", "--quiet"]
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"chunk_size", "preload_nchunks", "max_requests", "prefetch"} == found["recommended"].keys()
    assert all(row["requests_per_million_rows"] > 0 and row["bytes_per_row"] > 0 for row in found["requests"])
    said: list[str] = []
    bench.show(found, said.append)
    assert any("requests per million rows" in line for line in said)


def test_wrong_use(server, capsys):
    assert main(["info", f"{server.url}/nothing.zarr"]) == 1
    assert "no Zarr group at" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["info", f"{server.url}/cells.zarr", "--storage-options", "[]"])
    assert "must be a JSON object, got '[]'" in capsys.readouterr().err
    for given in ([], ["--accept"]):
        assert main(["verify", f"{server.url}/cells.zarr", *given]) == 1
        assert f"path must be a local file or folder, got {server.url}/cells.zarr; copy it" in capsys.readouterr().err
