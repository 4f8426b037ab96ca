"""The examples of docs/loader.md and docs/splits.md run as they stand there."""

from __future__ import annotations

import re
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")


def blocks_of(page):
    return re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / page).read_text(), re.DOTALL)


def test_page_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks_of("loader.md"):
        if "torch" not in code or find_spec("torch"):
            exec(code, names)
    assert names["state"]["data"]["n_obs"] == 1000


def test_splits_by_donor_can_be_pasted(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="needs torch")
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks_of("splits.md"):
        if "lightning" in code and not find_spec("lightning"):
            pytest.skip("needs lightning from here on")
        with warnings.catch_warnings():
            if "lightning" in code:
                warnings.simplefilter("ignore")  # what Lightning says about few workers, and of itself
            exec(code, names)
    assert re.search(r"train: \d+ rows \(0.7\d*\) in \d+ groups", capsys.readouterr().out)
    donors = [set(side.obs(["donor"])["donor"]) for side in names["sides"].values()]
    assert sum(map(len, donors)) == len(set().union(*donors)) == 24
    assert {len(batch["obs"]["cell_type"].unique()) for batch in names["t_cells"]} == {2}
    assert next(iter(names["train"]))["wanted"].unique().numel() == 1
