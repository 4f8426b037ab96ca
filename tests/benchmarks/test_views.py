"""The benchmark of views runs, and measures what it says."""

from __future__ import annotations

from benchmarks import views


def test_every_figure_is_there():
    found = [*views.costs(300, 2), *views.sizes(1000), *views.starts(10**5, 4)]
    assert len({what for what, _ in found}) == len(found) == 9
    assert any("4 ranks" in what for what, _ in found)
