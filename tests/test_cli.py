"""The annbatch command: what it prints, its exit codes, and errors without tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import h5py
import numpy as np
import pandas as pd
import pytest

from annbatch import DatasetCollection
from annbatch.cli import main
from annbatch.commands.bench import _recommended, _settings
from tests.cells import cells, write


@pytest.fixture
def inputs(tmp_path):
    return [str(write(cells(60, seed=i, prefix=f"p{i}"), tmp_path / f"{i}.h5ad")) for i in range(2)]


@pytest.fixture
def place(tmp_path, inputs):
    path = tmp_path / "c.zarr"
    DatasetCollection(path).add_adatas(
        inputs, groupby="cell_type", rng=np.random.default_rng(0), progress=False, n_obs_per_chunk=8
    )
    return path


def test_build_and_add(tmp_path, inputs, capsys):
    out = str(tmp_path / "new.zarr")
    assert (
        main(["build", out, *inputs, "--groupby", "cell_type", "--seed", "1", "--quiet", "--dataset-size", "70"]) == 0
    )
    assert "new.zarr: 2 datasets" in capsys.readouterr().out
    assert main(["build", out, inputs[0], "--if-exists", "add", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": out, "datasets": 3}
    assert len(DatasetCollection(out).obs()) == 180
    capsys.readouterr()
    assert main(["build", out, *inputs, "--if-exists", "skip", "--quiet"]) == 0
    assert f"annbatch: left out {len(inputs)} of {len(inputs)} inputs that are there already" in capsys.readouterr().err


def test_build_options(tmp_path, inputs, capsys):
    genes = tmp_path / "genes.txt"
    genes.write_text("g3\ng1\n")
    codec = '[{"name": "zstd", "configuration": {"level": 2}}]'
    arguments = [
        "--var-subset",
        str(genes),
        "--no-compact",
        "--no-shuffle",
        "--zarr-compressor",
        codec,
        "--max-memory",
        "90MB",
    ]
    assert main(["build", str(tmp_path / "o.zarr"), *inputs, *arguments, "--n-obs-per-chunk", "4", "--quiet"]) == 0
    group = next(iter(DatasetCollection(tmp_path / "o.zarr")))
    assert group["X/data"].dtype == np.float32
    assert group["X"].attrs["shape"] == [120, 2]
    assert main(["build", str(tmp_path / "h5"), *inputs, "--h5ad", "--h5ad-compressor", "none", "--quiet"]) == 0
    assert (tmp_path / "h5" / "dataset_0.h5ad").exists()
    capsys.readouterr()


def test_info_shows_runs_and_the_largest_chunk_size(place, capsys):
    assert main(["info", str(place)]) == 0
    text = capsys.readouterr().out
    obs = DatasetCollection(place).obs(["cell_type"])["cell_type"]
    smallest = obs.value_counts().min()
    assert "120 rows x 12 genes" in text
    assert f"cell_type: 3 classes; ClassSampler can use chunk_size up to {smallest}" in text
    assert "uint8, given back as float32, indices uint16" in text
    assert main(["info", str(place), "--json", "--label", "src_path"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_obs"] == 120
    assert found["datasets"][0]["matrices"]["X"]["rows_per_chunk"] == pytest.approx(8, rel=0.1)
    assert sum(row["rows"] for row in found["labels"]["src_path"]["classes"]) == 120


def test_info_of_files(tmp_path, inputs, capsys):
    assert main(["info", *inputs]) == 0
    said = capsys.readouterr().out
    assert said.count("AnnData") == 2
    assert all(path in said for path in inputs)
    assert main(["info", *inputs, "--json"]) == 0
    assert [found["path"] for found in json.loads(capsys.readouterr().out)] == inputs
    DatasetCollection(tmp_path / "h5", is_collection_h5ad=True).add_adatas(inputs, progress=False)
    assert main(["info", str(tmp_path / "h5")]) == 0
    assert "collection of h5ad files" in capsys.readouterr().out


def test_info_says_how_a_matrix_is_stored_and_who_reads_it(tmp_path, place, capsys):
    assert main(["info", str(place)]) == 0
    assert "      blosc (lz4hc), crc32c: read directly\n" in capsys.readouterr().out
    adata = cells(20, seed=0, prefix="c")
    adata.layers["dense"] = adata.X.toarray()
    adata.layers["csc"] = adata.X.tocsc()
    path = write(adata, tmp_path / "a", fmt="gzip")
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        file["X"].create_dataset("data", data=adata.X.data.astype("int32"), chunks=True, scaleoffset=0)
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert "values scaleoffset; indices gzip: read through h5py, which is slower: of the filter scaleoffset\n" in said
    assert "      gzip: read directly\n" in said
    assert "it is stored by columns (CSC): no loader reads it\n" in said
    assert main(["info", str(path), "--json"]) == 0
    dense = json.loads(capsys.readouterr().out)["datasets"][0]["matrices"]["layers/dense"]
    assert (dense["codecs"], dense["not_direct"]) == (["gzip"], None)


@pytest.mark.parametrize("what", ["collection", "file"])
def test_bench_recommends_a_setting(place, inputs, what, capsys):
    path = str(place) if what == "collection" else inputs[0]
    assert main(["bench", path, "--batch-size", "16", "--seconds", "0.02", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted({s["chunk_size"] for s in found["settings"]}) == [1, 8, 32, 128, 512]
    assert all(s["rows_per_second"] > 0 for s in found["settings"])
    settings = [(s["chunk_size"], s["preload_nchunks"]) for s in found["settings"]]
    assert (found["recommended"]["chunk_size"], found["recommended"]["preload_nchunks"]) in settings
    options = ["--batch-size", "16", "--seconds", "0.02", "--quiet", "--label", "cell_type"]
    assert main(["bench", path, *options]) == 0
    said = capsys.readouterr().out
    assert "<- use this" in said
    assert "of cell_type in a batch" in said


@pytest.mark.parametrize("batch_size", [1, 48, 64, 100, 128, 1000, 4096, 50_000])
def test_bench_tries_short_and_long_load_requests_whatever_the_batch_size(batch_size):
    settings = _settings(batch_size)
    assert len(settings) <= 10
    assert len(set(settings)) == len(settings)
    rows = [chunk_size * preload_nchunks for chunk_size, preload_nchunks in settings]
    assert all(n % batch_size == 0 for n in rows)
    assert min(rows) <= max(1024 + batch_size, batch_size)
    assert 8192 <= max(rows) <= max(4 * 8192, 2 * batch_size)


def test_bench_leaves_out_load_requests_that_memory_may_not_hold(place, monkeypatch, capsys):
    monkeypatch.setattr("annbatch.commands.bench._MOST_BYTES", 40_000)
    assert main(["bench", str(place), "--batch-size", "16", "--seconds", "0.01", "--quiet", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings
    assert all(s["chunk_size"] * s["preload_nchunks"] < 8192 for s in settings)


def test_bench_tells_how_well_each_setting_mixes(tmp_path, capsys):
    cell_type = pd.Categorical(np.repeat(["a", "b", "c", "d"], 10_000))
    donor = pd.Categorical(np.tile(["D1", "D2"], 20_000))
    obs = {"cell_type": cell_type, "donor": donor, "barcode": np.arange(40_000).astype(str)}
    adata = cells(40_000, 3, seed=0, prefix="cell", obs=obs)
    paths = [str(write(part, tmp_path / f"{i}.h5ad")) for i, part in enumerate([adata[:20_000], adata[20_000:]])]
    assert main(["bench", *paths, "--batch-size", "16", "--seconds", "0.01", "--quiet", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert {setting["label"] for setting in settings[1:]} <= {"cell_type", "donor"}
    mixed = {(setting["chunk_size"], setting["preload_nchunks"]): setting for setting in settings}
    assert mixed[1, 1024]["entropy"] > 0.95
    assert mixed[128, 8]["label"] == "cell_type"  # sorted, hence the worst
    assert mixed[128, 8]["entropy"] < 0.9
    assert mixed[128, 64]["entropy"] > mixed[128, 8]["entropy"]
    assert mixed[1, 1024]["gap"] > 0.8
    assert mixed[128, 8]["gap"] < 0.3


def test_the_advice_of_bench_is_a_setting_that_mixes_and_is_fast():
    def setting(chunk_size, rate, entropy, preload_nchunks=8):
        return {
            "chunk_size": chunk_size,
            "preload_nchunks": preload_nchunks,
            "rows_per_second": rate,
            "entropy": entropy,
        }

    sorted_rows = [setting(1, 10, 1.0), setting(8, 50, 0.97), setting(32, 60, 0.96), setting(512, 900, 0.1)]
    assert _recommended(sorted_rows)["chunk_size"] == 8
    shuffled_rows = [setting(1, 10, 1.0), setting(8, 50, 0.97), setting(32, 800, 1.0), setting(512, 900, 1.0)]
    assert _recommended(shuffled_rows)["chunk_size"] == 32
    # Batches of so few rows that the single-row setting is not as good as an ideal draw by chance.
    assert _recommended([setting(1, 10, 0.9), setting(8, 50, 0.5)])["chunk_size"] == 1
    assert _recommended([setting(1, 10, None), setting(8, 50, None)])["chunk_size"] == 8
    # A short load request of the same chunks is quicker, but mixes too little in one of the two.
    short_and_long = [setting(32, 100, 0.97, 32), setting(32, 90, 1.0, 256)]
    assert _recommended(short_and_long)["preload_nchunks"] == 32
    assert _recommended([setting(32, 100, 0.9, 32), short_and_long[1]])["preload_nchunks"] == 256


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "out"), "--cells", "4000", "--passes", "3", "--quiet", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [run["sampler"] for run in found["runs"]] == ["RandomSampler", "ClassSampler"]
    random, weighted = (run["shares"][found["rare_class"]] for run in found["runs"])
    assert weighted > 3 * random
    assert all(run["accuracy"] > 0.15 for run in found["runs"])
    assert found["runs"][1]["classes_per_batch"] == 1
    assert "held-out cells" in captured.err
    assert (tmp_path / "out" / "cells_0.h5ad").exists()
    picture = ET.fromstring((tmp_path / "out" / "picture.svg").read_text())
    words = {"".join(text.itertext()) for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"RandomSampler", "ClassSampler", f"{found['rare_class']} (rare)", "cluster_00"} <= words
    bars = [bar for bar in picture.iter("{http://www.w3.org/2000/svg}rect") if bar.get("width") != "100%"]
    # Two samplers; twelve classes, the classes in a batch, and the keys of two charts.
    assert len(bars) == 2 * (12 + 1 + 2)
    assert all(0 <= float(bar.get("width")) < 720 for bar in bars)
    # A second demo in the same place is refused: it never writes over anything.
    assert main(["demo", "--out", str(tmp_path / "out"), "--cells", "5000", "--passes", "1", "--quiet"]) == 1
    assert "must be a new or an empty folder" in capsys.readouterr().err
    assert len(DatasetCollection(tmp_path / "out" / "collection.zarr").obs()) == 4000


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["info", "nowhere.zarr"], "nowhere.zarr does not exist"),
        (["build", "out.zarr", "nowhere.h5ad"], "'nowhere.h5ad' does not exist"),
        (["build", "out.zarr", "nowhere.h5ad", "--max-memory", "much"], "max_memory must be a size"),
        (["build", "out.zarr", "x.h5ad", "--zarr-compressor", "zip"], "zarr_compressor must be a JSON list"),
        (["bench", "nowhere.zarr"], "nowhere.zarr"),
        (["demo", "--cells", "10"], "cells must be >= 4000"),
    ],
)
def test_errors_without_traceback(tmp_path, monkeypatch, capsys, arguments, text):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("annbatch: error: ")
    assert text in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_unknown_label(place, capsys):
    assert main(["info", str(place), "--label", "nope"]) == 1
    assert "obs has no column 'nope'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["build"], ["build", "x", "y", "--merge", "all"], ["build", "x", "y", "--seed", "-1"]],
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: annbatch" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["build", "info", "bench", "demo"])
def test_help_teaches(command, capsys):
    for arguments in (["--help"], [command, "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert command in capsys.readouterr().out


def test_interrupt(monkeypatch, place, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("annbatch.commands.info.describe", interrupt)
    assert main(["info", str(place)]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_python_m_annbatch(place):
    done = subprocess.run(
        [sys.executable, "-m", "annbatch", "info", str(place), "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert json.loads(done.stdout)["n_obs"] == 120
