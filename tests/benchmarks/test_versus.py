"""The side-by-side runs: figures are worked out right, failures become rows, documents keep what is not ours to change."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.versus import public
from benchmarks.versus.cases import CASES, Case, Measure, Side
from benchmarks.versus.environments import OLDEST_PYTHON, REQUIREMENTS, Environments, find_python
from benchmarks.versus.measure import Sizes, Versus, summary, times_better
from benchmarks.versus.report import (
    FEW,
    PEERS,
    figure_text,
    markdown_table,
    plot,
    rewrite_section,
    short_table,
    write_into,
)
from benchmarks.versus.running import WORKERS, WorkerError, run_worker


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """A folder of workers, and an environment that runs them with this interpreter."""
    monkeypatch.setattr("benchmarks.versus.running.WORKERS", tmp_path)
    environments = SimpleNamespace(
        interpreter=lambda name: sys.executable, variables=lambda name: None, folder=tmp_path
    )

    def write(name, code):
        (tmp_path / name).write_text(code)
        return environments

    return write


def test_every_case_has_what_it_needs_and_a_name_of_its_own():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert (WORKERS / case.ours.worker).exists()
        assert (WORKERS / case.peer.worker).exists()
        assert case.ours.environment == "ours" != case.peer.environment
        assert (REQUIREMENTS / f"{case.peer.environment}.txt").exists()
        assert case.peer.environment in OLDEST_PYTHON
        assert case.peer.environment in PEERS


def test_an_interpreter_that_is_too_old_is_not_taken():
    assert find_python((3, 11)) == sys.executable
    with pytest.raises(RuntimeError, match="Python 3.99 or later not found"):
        find_python((3, 99), other=sys.executable)


def test_times_better_is_above_one_when_we_are_better():
    assert times_better([300.0, 100.0, 200.0], [50.0], more_is_better=True) == 4.0
    assert times_better([2.0], [10.0, 6.0, 8.0], more_is_better=False) == 4.0
    assert times_better([], [1.0], more_is_better=True) is None


def test_summary_keeps_the_spread():
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "lowest": 1.0, "highest": 3.0, "rounds": 3}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(123_456, "rows/s", "123,000"), (0.0123, "s", "12.3 ms"), (12.34, "s", "12.3 s"), (2.5e9, "bytes", "2.50 GB")],
)
def test_figures_have_three_digits_and_a_unit(value, unit, text):
    assert figure_text(value, unit) == text


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('no such thing')", "no such thing"),
        ("import sys; sys.exit(3)", "exit status 3"),
        ("print('done')", "no line of JSON"),
        ("import time; time.sleep(60)", "no result after 1 s"),
    ],
)
def test_a_worker_that_fails_says_why(workers, code, reason):
    environments = workers("worker.py", code)
    timeout = 1 if "sleep" in code else 240
    with pytest.raises(WorkerError, match=reason):
        run_worker(environments, "ours", "worker.py", {}, timeout=timeout)


def test_a_side_that_fails_is_a_row_with_its_reason(workers, tmp_path):
    workers("good.py", "print('{\"seconds\": 2.0}')")
    environments = workers("bad.py", "raise KeyError('lost')")
    case = Case("a-case", "A case", Side("ours", "good.py"), Side("annbatch", "bad.py"), (Measure("seconds", "s", 2),))
    versus = Versus(environments, SimpleNamespace(folder=tmp_path), Sizes(rounds=2))
    figures = versus.run(case, {case.name: case})
    assert figures["measures"][0]["ours"]["rounds"] == 2
    assert figures["measures"][0]["peer"] is None
    machine = {"cpu": "a cpu", "cpus": 2, "memory_gb": 8, "load": 0.1}
    row = {"name": case.name, "title": case.title, "peer": "annbatch 0.3.1", "commit": "abc", **figures}
    table = markdown_table({"date": "2026-01-01", "machine": machine, "sizes": vars(Sizes()), "cases": [row]})
    assert "| failed | 2 s (2 s to 2 s) |" in table
    assert "`a-case`: peer failed: KeyError: 'lost'" in table


def test_a_ratio_below_one_is_drawn_too(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra 'bench')")
    measures = [
        [{"title": "", "ratio": ratio, "goal": goal}] for ratio, goal in [(0.2, 2.0), (30.0, None), (None, 5.0)]
    ]
    cases = [{"name": f"case-{i}", "peer": "a peer", "measures": measure} for i, measure in enumerate(measures)]
    plot({"cases": cases}, [tmp_path / "plot.svg"])
    drawn = (tmp_path / "plot.svg").read_text()
    assert "0.2 x" in drawn
    assert "30 x" in drawn
    assert "case-2" not in drawn


def test_rewriting_a_section_leaves_the_rest_alone(tmp_path):
    document = tmp_path / "document.md"
    document.write_text("before\n<!-- versus:begin -->\nold\n<!-- versus:end -->\nafter\n")
    rewrite_section(document, "versus", "new\n")
    rewrite_section(document, "versus", "newer\n")
    assert document.read_text() == "before\n<!-- versus:begin -->\nnewer\n<!-- versus:end -->\nafter\n"


@pytest.mark.parametrize("text", ["nothing", "<!-- versus:end -->\n<!-- versus:begin -->", "<!-- versus:begin -->" * 2])
def test_a_document_without_its_markers_is_refused_and_kept(tmp_path, text):
    document = tmp_path / "document.md"
    document.write_text(text)
    with pytest.raises(ValueError, match="must hold the lines"):
        rewrite_section(document, "versus", "new")
    assert document.read_text() == text


def test_the_short_table_has_the_cases_that_matter_to_most_and_says_what_failed(tmp_path):
    assert set(FEW) <= {case.name for case in CASES}
    measure = {"unit": "rows/s", "ratio": 2.0, "peer": {"median": 1000.0}, "ours": {"median": 2000.0}}
    cases = [{"name": name, "peer": "a peer", "measures": [measure]} for name in FEW]
    cases[1]["measures"] = []
    results = {
        "date": "2026-01-01",
        "machine": {"cpus": 2},
        "sizes": {"files": 4, "cells": 50_000},
        "cases": [*cases, {**cases[0], "name": "another"}],
    }
    document = tmp_path / "README.md"
    document.write_text("<!-- versus-few:begin -->\n<!-- versus-few:end -->\n")
    write_into(document, results, tmp_path / "plot.svg")
    rows = [line for line in document.read_text().splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(FEW)
    assert rows[0].endswith("| a peer | 1,000 rows/s | 2,000 rows/s | **2 x** |")
    assert "failed" in rows[1]
    assert short_table(results) in document.read_text()


# The comparison of everything with everything on one task.


def public_results():
    row = {
        "name": "ours-32x256", "title": "ours", "environment": "ours", "batches": "CSR", "version": "0.5.0", "conversion": None,
        "rates": [1000.0, 900.0, 1100.0], "peak_memory": [2e8], "quality": {"entropy": 0.9, "gap": 0.2},
    }  # fmt: skip
    peer = {
        **row, "name": "peer", "title": "peer {}", "environment": "peer", "version": "1.2", "rates": [10.0],
        "peak_memory": [4e8], "quality": {"entropy": 1.0, "gap": None}, "conversion": {"seconds": 7.0, "size_on_disk": 5e6},
    }  # fmt: skip
    broken = {**peer, "name": "broken", "title": "broken {}", "rates": [], "failed": "no such thing"}
    return {
        "date": "2026-01-01", "commit": "abc", "machine": {"cpu": "a cpu", "cpus": 2, "load": 0.1},
        "sizes": {"files": 2, "cells": 5000, "rounds": 3, "seconds": 1.0},
        "rows": [row, peer, broken], "absent": {"another": "needs a GPU"},
    }  # fmt: skip


def test_the_comparison_says_what_is_best_who_wins_what_failed_and_what_is_absent():
    table = public.markdown(public_results())
    assert "| ours | CSR | **1,000** (900 to 1,100) | **200 MB** | 0.90 | 0.20 | none |" in table
    assert "| peer 1.2 | CSR | 10 (10 to 10) | 400 MB | 1.00 |  | 7 s, 5 MB |" in table
    assert "Where a peer is better than annbatch at 32 x 256 on the h5ad files: peer 1.2 mixes labels better." in table
    assert "broken : failed: no such thing" in table
    assert "- another: needs a GPU" in table
    assert "at commit abc" in table
    assert "load 0.1" in table


def test_the_comparison_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra 'bench')")
    public.plot(public_results(), [tmp_path / "plot.svg"])
    drawn = (tmp_path / "plot.svg").read_text()
    assert "ours-32x256" in drawn
    assert "broken" not in drawn


def test_every_candidate_has_what_it_needs():
    names = [candidate.name for candidate in public.CANDIDATES]
    assert len(set(names)) == len(names)
    for candidate in public.CANDIDATES:
        assert candidate.environment in public.PACKAGE
        if candidate.environment != "ours":
            assert (REQUIREMENTS / f"{candidate.environment}.txt").exists()
            assert candidate.environment in OLDEST_PYTHON


def test_a_loader_that_repeats_rows_within_a_pass_has_failed(tmp_path):
    class Repeating(public.Comparison):
        def worker(self, candidate, task, **more):
            np.savez(more["out"], np.array([0, 1]), np.array([1, 2]))

    comparison = Repeating(None, tmp_path, [], 1.0)
    with pytest.raises(WorkerError, match="repeat rows within a pass"):
        comparison.quality(public.CANDIDATES[0], np.zeros(300, int))


@pytest.mark.slow
def test_our_side_of_the_comparison_runs(tmp_path):
    environments = Environments(tmp_path, given={})
    paths = public.make_files(tmp_path / "h5ad", 2, 200)
    codes = public.codes_of(paths)
    assert (np.diff(codes[:200]) >= 0).all()
    comparison = public.Comparison(environments, tmp_path, paths, 0.01)
    comparison.run([public.CANDIDATES[1]], 1)
    found = comparison.found["ours-32x256"]
    assert "failed" not in found
    assert found["rates"][0] > 0
    assert found["quality"]["entropy"] == pytest.approx(1, abs=0.1)  # all rows are one load request
