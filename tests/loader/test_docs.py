"""The examples of docs/loader.md run as they stand there."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")


def test_page_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "loader.md").read_text()
    names = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if "torch" not in code or find_spec("torch"):
            exec(code, names)
    assert names["state"]["data"]["n_obs"] == 1000
