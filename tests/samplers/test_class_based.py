"""ClassSampler and WeightedClassSampler."""

from __future__ import annotations

import json
import math
import re
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from annbatch import ClassSampler, WeightedClassSampler
from annbatch.samplers._runs import Runs, RunTable

from .checks import batches_of, check_pass, plain, rows_of

LABELS = ["a", "b", "c"]


def categorical(*runs, categories=LABELS):
    """("a", 5), ("b", 3), ... as a Categorical."""
    labels = np.concatenate([[label] * length for label, length in runs])
    return pd.Categorical(labels, categories=categories)


SORTED = categorical(("a", 60), ("b", 30), ("c", 20))
MIXED = categorical(("a", 20), ("b", 10), ("a", 15), ("c", 12), ("b", 25), ("a", 10), ("c", 18))


def sampler_of(kind=ClassSampler, chunk_size=5, preload_nchunks=8, batch_size=10, *, seed=0, **kwargs):
    arguments = {"classes": MIXED, "num_samples": 200, **kwargs}
    return kind(chunk_size, preload_nchunks, batch_size, rng=np.random.default_rng(seed), **arguments)


@st.composite
def geometries(draw):
    chunk_size, preload = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    window = chunk_size * preload
    return chunk_size, preload, draw(st.sampled_from([b for b in range(1, window + 1) if window % b == 0]))


@st.composite
def cases(draw):
    """Runs of every kind: long ones of classes that are drawn, short ones of classes that are excluded."""
    geometry = draw(geometries())
    weights = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 7.0]), min_size=3, max_size=3))
    runs = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30)), min_size=1, max_size=8))
    runs = [(c, n if weights[c] <= 0 else n + geometry[0]) for c, n in runs]
    # Neighbours of one class make one run, which is longer still.
    return geometry, weights, categorical(*[(LABELS[c], n) for c, n in runs])


@given(cases(), st.integers(1, 200), st.booleans(), st.integers(0, 2**32))
def test_what_holds_for_every_pass(case, num_samples, drop_last, seed):
    geometry, weights, classes = case
    weights = np.array(weights)
    arguments = {
        "classes": classes,
        "class_weights": weights,
        "num_samples": num_samples,
        "drop_last": drop_last,
        "rng": np.random.default_rng(seed),
    }
    if not (weights[np.unique(classes.codes)] > 0).any():
        with pytest.raises(ValueError, match="class_weights must be > 0 for at least one class"):
            ClassSampler(*geometry, **arguments)
        return
    for kind in (ClassSampler, WeightedClassSampler):
        sampler = kind(*geometry, **arguments)
        batches = check_pass(sampler, len(classes), n_rows=num_samples, drop_last=drop_last)
        for batch in batches:
            codes = classes.codes[batch]
            assert (weights[codes] > 0).all()
            if kind is ClassSampler:
                assert len(np.unique(codes)) == 1
        for request in sampler.sample(len(classes)):
            if geometry[0] > 1:
                for part in request["requests"]:
                    assert len(np.unique(classes.codes[part])) == 1


@given(cases(), st.data())
def test_the_run_table_over_a_window_equals_the_table_of_the_cut_out_codes(case, data):
    (chunk_size, _, _), _, classes = case
    bounds = st.integers(0, len(classes))
    outer_start, start, stop, outer_stop = sorted(data.draw(st.lists(bounds, min_size=4, max_size=4)))
    assume(start < stop)
    found = Runs.find(classes.codes, start, stop, guess=2)
    wider = Runs.find(classes.codes, outer_start, outer_stop, guess=100)
    cut_out = Runs.find(classes.codes[start:stop].copy(), 0, stop - start, guess=2)
    expected = RunTable.build(cut_out, n_classes=3, chunk_size=chunk_size)
    for runs in (found, wider.within(start, stop)):
        table = RunTable.build(runs, n_classes=3, chunk_size=chunk_size)
        np.testing.assert_array_equal(table.run_start, expected.run_start + start)
        for name in ("class_offset", "cumulative_starts", "class_rows", "class_short_runs"):
            np.testing.assert_array_equal(getattr(table, name), getattr(expected, name))
    assert start == outer_start or found.within(outer_start, stop) is None
    assert stop == outer_stop or found.within(start, outer_stop) is None


def test_more_runs_than_fit_the_first_output():
    codes = (np.arange(300_000) % 3).astype(np.int8)
    table = RunTable.build(Runs.find(codes, 1, 300_000, guess=3), n_classes=3, chunk_size=100_000)
    assert table.class_rows.tolist() == [99_999, 100_000, 100_000]
    assert table.class_short_runs.tolist() == [99_999, 100_000, 100_000]
    np.testing.assert_array_equal(table.run_start[:99_999], np.arange(3, 300_000, 3))


@given(cases(), st.data())
def test_a_mask_that_moved_about_leaves_the_sampler_as_if_it_was_made_there(case, data):
    geometry, _, classes = case
    starts = data.draw(st.lists(st.integers(0, len(classes) - 1), min_size=1, max_size=4))
    masks = [slice(start, data.draw(st.integers(start + 1, len(classes)))) for start in starts]

    def made_at(mask):
        try:
            return sampler_of(ClassSampler, *geometry, classes=classes, mask=mask)
        except ValueError as error:
            return str(error)

    sampler = made_at(masks[0])
    assume(not isinstance(sampler, str))
    for mask in masks[1:]:
        expected = made_at(mask)
        if isinstance(expected, str):
            with pytest.raises(ValueError, match=re.escape(expected)):
                sampler.mask = mask
        else:
            sampler.mask = mask
            assert sampler.state_dict()["sampler"] == expected.state_dict()["sampler"]


def test_runs_are_kept_only_where_they_are_small_beside_the_codes():
    long_runs, pairs, scattered = (
        np.repeat(list("abc"), 400),
        np.tile(np.repeat(list("abc"), 2), 200),
        np.tile(list("abc"), 400),
    )
    for labels, chunk_size, kept in ((long_runs, 1, "runs"), (pairs, 2, "nothing"), (scattered, 1, "rows")):
        sampler = ClassSampler(chunk_size, 4, 2, classes=pd.Categorical(labels), num_samples=10)
        assert (sampler._runs is not None) == (kept == "runs")
        assert (sampler._row_index is not None) == (kept == "rows")


# -- statistics: fixed seeds; the limits are passed by a fair sampler with p = 1 - 1e-6 ------------------------------------


@pytest.mark.parametrize("kind", [ClassSampler, WeightedClassSampler])
def test_classes_are_drawn_by_weight(kind):
    # ClassSampler: 4,000 groups of 10 rows. WeightedClassSampler: 8,000 chunks of 5 rows.
    sampler = sampler_of(kind, classes=SORTED, num_samples=40_000, class_weights=[1, 2, 5])
    drawn = np.concatenate([SORTED.codes[rows_of(request)[::5]] for request in sampler.sample(110)])
    counts = np.bincount(drawn) / (2 if kind is ClassSampler else 1)
    assert stats.chisquare(counts, counts.sum() * np.array([1, 2, 5]) / 8).pvalue > 1e-6


def test_without_weights_every_class_present_is_equally_likely():
    classes = categorical(("a", 60), ("c", 20))
    sampler = sampler_of(classes=classes, num_samples=40_000)
    firsts = np.array([classes.codes[batch[0]] for batch in batches_of(sampler.sample(80))])
    assert set(firsts) == {0, 2}
    assert stats.binomtest(int((firsts == 0).sum()), len(firsts)).pvalue > 1e-6


@pytest.mark.parametrize("chunk_size", [1, 5])
def test_every_chunk_start_of_a_class_is_equally_likely(chunk_size):
    # scverse/annbatch #273: runs were picked with equal weight, so rows of short runs came more often.
    sampler = sampler_of(
        chunk_size=chunk_size, preload_nchunks=40, num_samples=30_000 * chunk_size, class_weights=[1, 0, 0]
    )
    if chunk_size == 1:
        starts = np.concatenate([rows_of(request) for request in sampler.sample(110)])
    else:
        starts = np.array([part.start for request in sampler.sample(110) for part in request["requests"]])
    possible = [row for row in range(110 - chunk_size + 1) if (MIXED.codes[row : row + chunk_size] == 0).all()]
    counts = np.bincount(starts, minlength=110)
    assert counts.sum() == counts[possible].sum() == 30_000
    assert stats.chisquare(counts[possible]).pvalue > 1e-6


def test_every_place_in_a_batch_is_equally_likely():
    # 10 positions x 10 places, 4,000 batches.
    counts = np.zeros((10, 10))
    for request in sampler_of(num_samples=40_000).sample(110):
        for number, split in enumerate(request["splits"]):
            counts[np.arange(10), split - 10 * number] += 1
    assert stats.chi2.sf(((counts - 400) ** 2 / 400).sum(), 9 * 9) > 1e-6


def test_weighted_batches_mix_classes():
    shares = np.zeros(3)
    sampler = sampler_of(WeightedClassSampler, batch_size=20, num_samples=20_000, class_weights=[1, 1, 2])
    n_mixed = 0
    for batch in batches_of(sampler.sample(110)):
        codes = MIXED.codes[batch]
        shares += np.bincount(codes, minlength=3)
        n_mixed += len(np.unique(codes)) > 1
    assert n_mixed > 900
    # 4,000 chunks of one class each: a share's standard deviation is below 0.008, 5 of them p = 6e-7.
    np.testing.assert_allclose(shares / shares.sum(), [0.25, 0.25, 0.5], atol=0.04)


def test_weighted_rows_are_shuffled_over_the_whole_load_request():
    first_halves = [
        np.concatenate(r["splits"][:2]) for r in sampler_of(WeightedClassSampler, num_samples=4000).sample(110)
    ]
    assert all((half < 20).any() and (half >= 20).any() for half in first_halves)


# -- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunk_size", "preload", "batch_size"), [(5, 8, 10), (6, 10, 4), (4, 9, 6), (5, 4, 5), (2, 9, 18)]
)
def test_a_class_changes_only_where_chunk_and_batch_edges_meet(chunk_size, preload, batch_size):
    group = math.lcm(chunk_size, batch_size)
    classes = categorical(("a", 60), ("b", 60), ("c", 60))
    sampler = ClassSampler(
        chunk_size, preload, batch_size, classes=classes, num_samples=30 * group, rng=np.random.default_rng(0)
    )
    drawn = np.concatenate([classes.codes[rows_of(request)] for request in sampler.sample(180)]).reshape(-1, group)
    assert (drawn == drawn[:, :1]).all()
    # As many classes as coherence allows: neighbouring groups differ about two times in three.
    assert (drawn[1:, 0] != drawn[:-1, 0]).any()


def test_one_load_request_may_hold_several_classes():
    sampler = sampler_of(preload_nchunks=16)
    assert any(len(np.unique(MIXED.codes[rows_of(request)])) > 1 for request in sampler.sample(110))


@pytest.mark.parametrize("num_samples", [1, 7, 40, 41, 199, 200])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_number_of_samples_is_exact(num_samples, drop_last):
    sampler = sampler_of(num_samples=num_samples, drop_last=drop_last)
    assert sampler.n_batches(110) == (num_samples // 10 if drop_last else -(-num_samples // 10))
    check_pass(sampler, 110, n_rows=num_samples, drop_last=drop_last)


# -- mask -------------------------------------------------------------------------------------------------------------


def test_a_mask_cuts_runs_and_keeps_global_rows():
    sampler = sampler_of(mask=slice(50, 80), class_weights=[1, 1, 3])
    rows = np.concatenate(batches_of(sampler.sample(110)))
    assert rows.min() >= 50
    assert rows.max() < 80
    assert set(MIXED[rows]) == {"b", "c"}


def test_setting_the_mask_equals_constructing_with_it():
    late = sampler_of()
    late.mask = slice(20, 57)
    assert plain(late.sample(110)) == plain(sampler_of(mask=slice(20, 57)).sample(110))
    late.mask = slice(0, None)
    early = sampler_of()
    list(early.sample(110))
    assert plain(late.sample(110)) == plain(early.sample(110))


def test_weights_are_shared_out_anew_from_the_original_ones():
    sampler = sampler_of(classes=SORTED, class_weights=[1, 2, 6])
    sampler.mask = slice(0, 90)
    np.testing.assert_allclose(sampler._window.cumulative_weights, [1 / 3, 1])
    sampler.mask = slice(0, None)
    np.testing.assert_allclose(sampler._window.cumulative_weights, np.array([1, 3, 9]) / 9)


def test_setting_the_same_rows_again_is_free():
    sampler = sampler_of()
    window = sampler._window
    sampler.mask = slice(0, 110)
    sampler.mask = slice(None)
    assert sampler._window is window


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (slice(17, 57), "every run of a class must hold at least chunk_size=5 rows, but 1 runs .* of the classes 'a'"),
        (slice(0, 111), "within the 110 rows"),
        (slice(20, 30), "weights of all classes present .'b'. are <= 0"),
    ],
)
def test_an_assignment_that_fails_leaves_the_sampler_as_it_was(mask, match):
    weights = [1, 0, 1] if mask == slice(20, 30) else [1, 1, 1]
    sampler, twin = sampler_of(class_weights=weights), sampler_of(class_weights=weights)
    with pytest.raises(ValueError, match=match):
        sampler.mask = mask
    assert sampler.mask == slice(0, None)
    assert plain(sampler.sample(110)) == plain(twin.sample(110))


def test_the_mask_cannot_move_while_a_pass_is_open():
    # scverse/annbatch #278
    sampler = sampler_of()
    requests = sampler.sample(110)
    next(requests)
    with pytest.raises(RuntimeError, match="while a pass is open"):
        sampler.mask = slice(0, 57)
    sampler.mask = slice(0, 110)
    rest = plain(requests)
    assert rest == plain(sampler_of().sample(110))[1:]
    sampler.mask = slice(0, 57)


def test_a_window_is_checked_only_inside():
    classes = categorical(("a", 20), ("b", 2), ("c", 20))
    with pytest.raises(ValueError, match="1 runs .* of the classes 'b'"):
        sampler_of(classes=classes)
    sampler = sampler_of(classes=classes, mask=slice(0, 20))
    sampler.mask = slice(22, 42)
    assert set(classes[np.concatenate(batches_of(sampler.sample(42)))]) == {"c"}


# -- arguments --------------------------------------------------------------------------------------------------------


def test_excluded_classes_may_have_short_runs():
    classes = categorical(("a", 20), ("b", 1), ("a", 20), ("b", 1), ("c", 7))
    for weight in (0, -1):
        sampler = sampler_of(classes=classes, class_weights=[1, weight, 1])
        assert set(classes[np.concatenate(batches_of(sampler.sample(49)))]) == {"a", "c"}


def test_the_run_length_error_counts_runs_and_names_labels():
    classes = pd.Categorical(["x"] * 3 + ["y"] * 9 + ["x"] * 2 + ["z"] * 4)
    with pytest.raises(ValueError, match=r"chunk_size=5 rows, but 3 runs .* of the classes 'x', 'z'"):
        sampler_of(classes=classes)


def test_a_long_list_of_labels_is_cut():
    with pytest.raises(ValueError, match=r"30 runs .*'9' and 20 more"):
        sampler_of(classes=pd.Categorical([str(i) for i in range(30)], categories=[str(i) for i in range(30)]))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"classes": np.array(["a", "b"])}, TypeError, "classes must be a pandas.Categorical, got ndarray"),
        ({"classes": pd.Series(MIXED)}, TypeError, "got Series; use its .values"),
        ({"classes": ["a"] * 110}, TypeError, "got list; use pandas.Categorical"),
        ({"classes": pd.Categorical(["a"] * 9 + [None])}, ValueError, "classes must not be NA, got 1 NA"),
        ({"class_weights": [1, 2]}, ValueError, r"one weight per class: 3 classes, got shape \(2,\)"),
        ({"class_weights": np.ones((3, 1))}, ValueError, "one weight per class"),
        ({"class_weights": 1.0}, ValueError, "one weight per class"),
        ({"class_weights": [0, 0, -1]}, ValueError, "class_weights must be > 0 for at least one class"),
        ({"class_weights": [1, np.nan, 1]}, ValueError, "class_weights must be finite, got nan for class 1"),
        ({"class_weights": [1, 1, np.inf]}, ValueError, "class_weights must be finite, got inf"),
        ({"class_weights": [1, 1, -np.inf]}, ValueError, "class_weights must be finite, got -inf"),
        ({"class_weights": ["x", 1, 1]}, TypeError, "class_weights must be an array of numbers"),
        (
            {"class_weights": pd.Series([1, 2, 3], index=list("cba"))},
            TypeError,
            r"got Series.*reindex\(classes.categories\)",
        ),
        ({"class_weights": {"a": 1}}, TypeError, "got dict.*reindex"),
        (
            {"class_weights": np.ma.array([1, 2, 3], mask=[0, 1, 0])},
            TypeError,
            "got MaskedArray.*mask would be ignored",
        ),
        ({"class_weights": ["1", "2", "3"]}, TypeError, "class_weights must be an array of numbers"),
        ({"class_weights": [10**400, 1, 1]}, TypeError, "class_weights must be an array of numbers"),
        ({"chunk_size": 2**70}, ValueError, "chunk_size must be < 2\\*\\*63"),
        ({"num_samples": 0}, ValueError, "num_samples must be >= 1, got 0"),
        ({"num_samples": None}, TypeError, "num_samples must be an integer, got None"),
        ({"chunk_size": 3}, ValueError, "multiple of batch_size"),
        ({"mask": slice(0, 111)}, ValueError, "within the 110 rows"),
        ({"classes": pd.Categorical([], categories=LABELS)}, ValueError, "within the 0 rows"),
    ],
)
@pytest.mark.parametrize("kind", [ClassSampler, WeightedClassSampler])
def test_bad_arguments_are_refused(kind, arguments, error, match):
    with pytest.raises(error, match=match):
        sampler_of(kind, **arguments)


def test_classes_must_describe_the_data():
    with pytest.raises(ValueError, match="got 110 classes for n_obs=111"):
        sampler_of().sample(111)
    with pytest.raises(ValueError, match="got 110 classes for n_obs=109"):
        sampler_of().validate(109)


def test_categories_without_rows_are_never_drawn():
    classes = pd.Categorical(["b"] * 20, categories=["a", "b", "c"])
    assert set(classes[np.concatenate(batches_of(sampler_of(classes=classes).sample(20)))]) == {"b"}


@pytest.mark.parametrize("n_categories", [3, 200, 40_000])
def test_every_width_of_codes_that_pandas_uses(n_categories):
    classes = pd.Categorical.from_codes(np.repeat([0, n_categories - 1], 20), [f"{i:05d}" for i in range(n_categories)])
    assert classes.codes.dtype == {3: np.int8, 200: np.int16, 40_000: np.int32}[n_categories]
    batches = batches_of(sampler_of(classes=classes).sample(40))
    assert {int(classes.codes[batch[0]]) for batch in batches} == {0, n_categories - 1}


@pytest.mark.parametrize("codes", [[0, 0, 1, 1, -2, -2], [0, 0, 1, 1, 100, 100], [0, 0, 1, 1, -1, -1]])
def test_codes_that_pandas_did_not_check_are_refused(codes):
    # The kernels index with them: memory of others was overwritten.
    classes = pd.Categorical.from_codes(np.array(codes * 100, dtype=np.int8), categories=["a", "b"], validate=False)
    with pytest.raises(ValueError, match="classes must not be NA"):
        ClassSampler(1, 4, 2, classes=classes, num_samples=10)


def test_classes_that_were_changed_afterwards_are_refused_when_they_are_looked_at_again():
    # The kernels index with the codes. Runs that are not kept are looked for whenever the mask moves.
    classes = pd.Categorical(np.tile(np.repeat(list("ab"), 2), 300))
    sampler = ClassSampler(2, 4, 2, classes=classes, num_samples=10)
    classes[::3] = np.nan
    with pytest.raises(ValueError, match=r"got NA in rows \[2, 600\)"):
        sampler.mask = slice(2, 600)


# -- scattered classes, single rows: an index of rows ----------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(0, 2**32), st.data())
def test_scattered_classes_draw_the_rows_that_a_run_table_would(n, seed, data):
    rng = np.random.default_rng(seed)
    classes = pd.Categorical.from_codes(rng.integers(0, 3, n), LABELS)
    start = data.draw(st.integers(0, n - 1))
    masks = [slice(start, data.draw(st.integers(start + 1, n))), slice(0, n)]
    sampler = sampler_of(chunk_size=1, classes=classes, preload_nchunks=20, mask=masks[0])
    for mask in (*masks, *masks):
        sampler.mask = mask
        drawn = plain(sampler.sample(n))
        state = sampler._inner.position.rng
        by_runs = sampler_of(chunk_size=1, classes=classes, preload_nchunks=20, mask=mask)
        by_runs._window.table = RunTable.build(
            Runs.find(classes.codes, mask.start, mask.stop, guess=10), n_classes=3, chunk_size=1
        )
        by_runs.rng.bit_generator.state = state
        assert plain(by_runs.sample(n)) == drawn


def test_the_index_takes_four_bytes_a_row_and_a_mask_none():
    n = 400_000
    classes = pd.Categorical.from_codes(np.random.default_rng(0).integers(0, 50, n), [str(i) for i in range(50)])
    tracemalloc.start()
    sampler = ClassSampler(1, 64, 64, classes=classes, num_samples=1000, mask=slice(0, n // 2))
    built, peak = tracemalloc.get_traced_memory()
    assert built < 4.2 * n / 2
    assert peak < 4.3 * n / 2 + n  # pandas hands out a copy of what is compared with NA
    tracemalloc.reset_peak()
    sampler.mask = slice(5, n)
    assert tracemalloc.get_traced_memory()[0] < 4.2 * n
    assert tracemalloc.get_traced_memory()[1] < 8.2 * n
    index = sampler._row_index
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    for start in range(0, n // 2, 50_000):
        sampler.mask = slice(start, start + n // 3)
    assert tracemalloc.get_traced_memory()[1] - before < 100_000
    tracemalloc.stop()
    assert sampler._row_index is index
    assert index.rows.dtype == np.uint32
    rows = np.concatenate(batches_of(sampler.sample(n)))
    assert rows.min() >= sampler.mask.start
    assert rows.max() < sampler.mask.stop


def test_classes_whose_rows_lie_apart():
    whole = pd.DataFrame({"c": pd.Categorical(np.repeat(list("ab"), 40))})
    for classes in (whole.iloc[::2]["c"].values, whole["c"].values[::-1]):
        sampler = ClassSampler(5, 4, 10, classes=classes, num_samples=100, class_weights=[1, 0])
        assert set(classes[np.concatenate(batches_of(sampler.sample(len(classes))))]) == {"a"}


def test_labels_that_only_look_alike_are_told_apart():
    state = sampler_of(classes=pd.Categorical(np.repeat([1, 2], 20))).state_dict()
    with pytest.raises(ValueError, match="state belongs to another sampler"):
        sampler_of(classes=pd.Categorical(np.repeat(["1", "2"], 20))).load_state_dict(state)


def test_the_codes_are_not_copied_and_the_weights_are():
    weights = np.array([1.0, 1.0, 1.0])
    sampler = sampler_of(class_weights=weights)
    assert np.shares_memory(sampler.classes.codes, MIXED.codes)
    weights[:] = 0
    assert sampler.class_weights.tolist() == [1, 1, 1]


def test_tiny_and_huge_weights_do_not_overflow():
    sampler = sampler_of(classes=SORTED, class_weights=[1e308, 1e308, 1e-308])
    assert sampler._window.cumulative_weights.tolist() == [0.5, 1.0, 1.0]


# -- reproducibility --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ClassSampler, WeightedClassSampler])
def test_resume_at_every_request(kind):
    expected = sampler_of(kind)
    first, second = plain(expected.sample(110)), plain(expected.sample(110))
    sampler = sampler_of(kind)
    requests = sampler.sample(110)
    for k in range(len(first) + 1):
        resumed = sampler_of(kind, seed=99)
        resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
        assert plain(resumed.sample(110)) == first[k:]
        assert plain(resumed.sample(110)) == second
        next(requests, None)


def test_a_state_of_other_classes_is_refused():
    state = sampler_of().state_dict()
    other = categorical(("a", 20), ("b", 11), ("a", 14), ("c", 12), ("b", 25), ("a", 10), ("c", 18))
    for arguments in (
        {"classes": other},
        {"class_weights": [1, 1, 2]},
        {"classes": MIXED.rename_categories(list("xyz"))},
    ):
        with pytest.raises(ValueError, match="state belongs to another sampler: here class"):
            sampler_of(**arguments).load_state_dict(state)


def test_the_draws_for_one_seed_are_pinned():
    # Breaking this changes everybody's training runs: it is a breaking change, and the change note must say so.
    sampler = ClassSampler(
        2, 4, 4, classes=SORTED, num_samples=14, class_weights=[1, 2, 3], rng=np.random.default_rng(42)
    )
    assert plain(sampler.sample(110)) == PINNED_CLASS
    weighted = WeightedClassSampler(2, 4, 4, classes=SORTED, num_samples=8, rng=np.random.default_rng(42))
    assert plain(weighted.sample(110)) == PINNED_WEIGHTED


PINNED_CLASS = [
    ([(25, 27), (24, 26), (102, 104), (102, 104)], [[2, 3, 0, 1], [7, 6, 5, 4]]),
    ([(2, 4), (38, 40), (64, 66)], [[2, 1, 0, 3], [5, 4]]),
]
PINNED_WEIGHTED = [([(25, 27), (98, 100), (102, 104), (38, 40)], [[0, 7, 5, 6], [3, 1, 4, 2]])]


def test_requests_do_not_wait_for_the_rest_of_the_pass():
    # 10**12 samples could neither be drawn nor held up front.
    sampler = sampler_of(num_samples=10**12)
    assert len(next(sampler.sample(110))["splits"]) == 4
    assert sampler.n_batches(110) == 10**11


def test_repr_says_what_it_is_without_listing_the_classes():
    text = repr(sampler_of())
    assert text.startswith("ClassSampler(chunk_size=5")
    assert "110 rows, 3 categories" in text
