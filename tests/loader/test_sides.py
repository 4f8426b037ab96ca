"""How rows and groups are divided into sides: exact numbers, whole groups, as near to the fractions as can be."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from annbatch.loader import allot
from annbatch.loader.allot import Groups, allot_groups, allot_rows, apportion, apportion_strata, group_rows
from annbatch.loader.sides import as_wanted_sides, side_of_rows

USUAL = (Fraction(8, 10), Fraction(1, 10), Fraction(1, 10))


@st.composite
def fractions(draw, max_sides=4):
    weights = draw(st.lists(st.integers(1, 50), min_size=1, max_size=max_sides))
    return [Fraction(weight, sum(weights)) for weight in weights]


def groups_of(sizes, rng=None):
    codes = np.repeat(np.arange(len(sizes)), sizes)
    if rng is not None:
        rng.shuffle(codes)
    return Groups(codes, [f"D{number}" for number in range(len(sizes))])


# -- numbers


@pytest.mark.parametrize(
    ("n", "shares", "expected"),
    [
        (10, (0.8, 0.1, 0.1), [8, 1, 1]),
        (100, (0.29, 0.71), [29, 71]),  # 100 * 0.29 is 28.999999999999996 in binary
        (11, (0.8, 0.1, 0.1), [9, 1, 1]),
        (5, (0.5, 0.5), [3, 2]),
        (1, (0.2, 0.8), [0, 1]),
        (0, (0.2, 0.8), [0, 0]),
        (2, (1 / 3, 1 / 3, 1 / 3), [1, 1, 0]),
    ],
)
def test_numbers_worked_by_hand(n, shares, expected):
    sides = as_wanted_sides({str(number): share for number, share in enumerate(shares)})
    assert apportion(n, list(sides.fractions.values())).tolist() == expected


@given(st.integers(0, 10**9), fractions())
def test_apportion_is_exact(n, shares):
    counts = apportion(n, shares)
    assert counts.sum() == n
    assert all(abs(count - n * share) < 1 for count, share in zip(counts.tolist(), shares, strict=True))


@given(st.lists(st.integers(0, 300), min_size=1, max_size=12), fractions(), st.integers(0, 5))
def test_strata_are_exact_in_both_directions(sizes, shares, seed):
    counts = apportion_strata(sizes, shares, np.random.default_rng(seed))
    assert counts.sum(axis=1).tolist() == sizes
    for size, of_stratum in zip(sizes, counts.tolist(), strict=True):
        assert all(abs(count - size * share) < 1 for count, share in zip(of_stratum, shares, strict=True))
    for total, share in zip(counts.sum(axis=0).tolist(), shares, strict=True):
        assert abs(total - sum(sizes) * share) < 1


def test_strata_are_rounded_without_bias():
    sizes, n_draws = [1, 2, 3, 5], 4000
    counts = sum(apportion_strata(sizes, USUAL, np.random.default_rng(seed)) for seed in range(n_draws))
    expected = np.outer(sizes, [float(share) for share in USUAL]) * n_draws
    # Each number is rounded up with a chance of at most 1/2: its sum has a standard deviation of at most sqrt(n_draws) / 2.
    # Six of them are passed with a chance below 2e-9 for each of twelve.
    assert np.abs(counts - expected).max() < 6 * np.sqrt(n_draws) / 2


# -- rows


@given(st.integers(0, 300), fractions(), st.integers(0, 5), st.integers(0, 4))
def test_rows_of_each_side_are_counted_exactly(n, shares, seed, n_strata):
    rng = np.random.default_rng(seed)
    strata = Groups(rng.integers(0, n_strata, n), list(range(n_strata))) if n_strata and n else None
    side = allot_rows(n, shares, rng, strata)
    counts = np.bincount(side, minlength=len(shares))
    if strata is None:
        assert counts.tolist() == apportion(n, shares).tolist()
        return
    for stratum in range(n_strata):
        of_stratum = np.bincount(side[strata.codes == stratum], minlength=len(shares))
        size = int((strata.codes == stratum).sum())
        assert all(abs(count - size * share) < 1 for count, share in zip(of_stratum.tolist(), shares, strict=True))


@pytest.mark.parametrize("stratified", [False, True])
def test_every_row_has_the_same_chance_of_every_side(monkeypatch, stratified):
    monkeypatch.setattr(allot, "_BLOCK", 16)  # several blocks
    n, n_draws = 50, 2000
    strata = Groups(np.arange(n) % 5, list(range(5))) if stratified else None
    chosen = np.zeros(n)
    for seed in range(n_draws):
        chosen += allot_rows(n, [Fraction(1, 2), Fraction(1, 2)], np.random.default_rng(seed), strata)
    # Rows of a draw hang together a little (their sum is fixed), which makes the statistic smaller, not larger.
    chi_square = ((chosen - n_draws / 2) ** 2 / (n_draws / 4)).sum()
    assert chi_square < stats.chi2.isf(1e-9, n)


def test_the_same_seed_is_the_same_split_and_another_is_another():
    first, same, other = (allot_rows(1000, USUAL, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.tolist() == same.tolist() != other.tolist()


# -- groups


def plain_cost(side, sizes, shares):
    held = [sum(size for size, its_side in zip(sizes, side, strict=True) if its_side == k) for k in range(len(shares))]
    return sum((Fraction(n, sum(sizes)) - share) ** 2 for n, share in zip(held, shares, strict=True))


@settings(max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), fractions(3), st.integers(0, 3))
def test_few_groups_are_divided_as_well_as_can_be(sizes, shares, seed):
    shares = shares[: len(sizes)]
    shares = [share / sum(shares) for share in shares]
    side = allot_groups(groups_of(sizes), shares, np.random.default_rng(seed))
    assert set(side.tolist()) == set(range(len(shares)))
    ways = (way for way in itertools.product(range(len(shares)), repeat=len(sizes)) if len(set(way)) == len(shares))
    assert float(plain_cost(side.tolist(), sizes, shares) - min(plain_cost(w, sizes, shares) for w in ways)) < 1e-9


@settings(max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=3, max_size=9), st.integers(0, 3))
def test_the_search_comes_near_the_best(sizes, seed):
    def error(side):
        return float(plain_cost(side.tolist(), sizes, USUAL)) ** 0.5

    with pytest.MonkeyPatch.context() as patch:
        best = allot_groups(groups_of(sizes), USUAL, np.random.default_rng(seed))
        patch.setattr(allot, "_MOST_WAYS", 1)
        found = allot_groups(groups_of(sizes), USUAL, np.random.default_rng(seed))
    assert set(found.tolist()) == {0, 1, 2}
    assert error(found) <= error(best) + 0.02


@pytest.mark.parametrize("n_groups", [30, 300])
def test_many_groups_come_very_near(n_groups):
    rng = np.random.default_rng(0)
    groups = groups_of(rng.integers(100, 1000, n_groups), rng)
    strata = Groups(rng.integers(0, 6, len(groups.codes)), list("abcdef"))
    for its_strata, bound in ((None, 0.001), (strata, 0.01)):
        side = allot_groups(groups, USUAL, np.random.default_rng(1), its_strata)[groups.codes]
        for rows in [side] if its_strata is None else [side, *(side[strata.codes == number] for number in range(6))]:
            got = np.bincount(rows, minlength=3) / len(rows)
            assert np.abs(got - [0.8, 0.1, 0.1]).max() < bound


def test_strata_matter_where_groups_differ():
    """Two kinds of donors, of one cell type each: every side gets some of both."""
    groups = groups_of([100] * 20)
    strata = Groups((groups.codes % 2).astype(np.int8), ["B", "T"])
    for seed in range(5):
        shares = [Fraction(1, 2), Fraction(1, 2)]
        side = allot_groups(groups, shares, np.random.default_rng(seed), strata)
        assert np.bincount(side[::2]).tolist() == np.bincount(side[1::2]).tolist() == [5, 5]


def test_seeds_choose_among_groups_of_one_size():
    sides = {
        tuple(allot_groups(groups_of([10] * n), USUAL, np.random.default_rng(seed)))
        for n in (10, 20)
        for seed in range(9)
    }
    assert len(sides) > 12
    again = [allot_groups(groups_of([10] * 20), USUAL, np.random.default_rng(3)).tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_groups_of_columns_do_not_depend_on_the_order_of_rows():
    donors, plates = (np.array([0, 1, -1, 1, 0], dtype=np.int8), ["D1", "D2"]), (np.array([2, 2, 0, -1, 2]), [7, 8, 9])
    one = group_rows([donors])
    assert repr(one.labels) == "[nan, 'D1', 'D2']"
    assert one.codes.tolist() == [1, 2, 0, 2, 1]
    both = group_rows([donors, plates])
    assert repr(both.labels) == "[(nan, 7), ('D1', 9), ('D2', nan), ('D2', 9)]"
    assert both.codes.tolist() == [1, 3, 0, 2, 1]
    turned = group_rows([(codes[::-1], labels) for codes, labels in (donors, plates)])
    assert repr(turned.labels) == repr(both.labels)
    assert turned.codes.tolist() == both.codes[::-1].tolist()
    many = [(np.arange(5), list(range(10**6))) for _ in range(5)]  # the product outgrows 64 bits
    assert group_rows(many).labels == [(number,) * 5 for number in range(5)]


# -- what was asked for


@pytest.mark.parametrize(
    ("sides", "error", "message"),
    [
        (0.8, TypeError, r"sides must be a dict of name: fraction, or name: \{column: values\}, got 0.8"),
        ({}, ValueError, "at least one side"),
        ({"a": 0.5}, ValueError, "add up to 1, got 0.5; pass ... for a side that takes the rest"),
        ({"a": 0.5, "b": 0.6}, ValueError, "add up to 1, got 1.1"),
        ({"a": 0.0, "b": 1.0}, ValueError, r"sides\['a'\] must be a fraction > 0 and <= 1, got 0.0"),
        ({"a": -0.5, "b": 1.5}, ValueError, "got -0.5"),
        ({"a": float("nan"), "b": 1}, ValueError, "got nan"),
        ({"a": 800, "b": 200}, ValueError, "<= 1, got 800"),
        ({"a": True}, TypeError, "got True"),
        ({"a": "0.5"}, TypeError, r"sides\['a'\] must be a fraction, .* got '0.5' \(str\)"),
        ({"a": None}, TypeError, "got None"),
        ({1: 1.0}, TypeError, "sides must have names, got 1"),
        ({"a": ..., "b": ...}, ValueError, r"the rest \(...\) to one side, got \['a', 'b'\]"),
        ({"a": 1.0, "b": ...}, ValueError, "leave something to 'b', got fractions that add up to 1"),
        ({"a": {}, "b": ...}, ValueError, r"sides\['a'\] must name at least one column"),
        (
            {"a": {"donor": [["D1"]]}, "b": ...},
            TypeError,
            r"sides\['a'\]\['donor'\] must be a value or a list of values",
        ),
    ],
)
def test_sides_that_cannot_be_meant(sides, error, message):
    with pytest.raises(error, match=message):
        as_wanted_sides(sides)


def test_the_rest_is_what_fractions_leave():
    sides = as_wanted_sides({"test": {"donor": "D1"}, "train": ..., "validation": 0.1})
    assert sides.names == ("test", "train", "validation")
    assert sides.conditions == {"test": {"donor": ["D1"]}}
    assert sides.fractions == {"train": Fraction(9, 10), "validation": Fraction(1, 10)}
    assert list(sides.fractions) == ["train", "validation"]
    thirds = as_wanted_sides(dict.fromkeys("abc", 1 / 3)).fractions
    assert set(thirds.values()) == {Fraction(1, 3)}


def test_rows_that_conditions_take_are_not_dealt_out():
    sides = as_wanted_sides({"test": {"donor": "D1"}, "train": 0.8, "validation": 0.2})
    taken = np.arange(100) < 40
    side = side_of_rows(sides, 100, {"test": taken}, np.random.default_rng(0))
    assert (side[taken] == 0).all()
    assert np.bincount(side).tolist() == [40, 48, 12]


MASK = np.arange(10) < 5


@pytest.mark.parametrize(
    ("sides", "taken", "message"),
    [
        ({"a": {"x": 1}, "b": {"x": 2}}, {"a": MASK, "b": MASK}, "got 5 that are in 'a' and in 'b'"),
        ({"a": {"x": 1}, "b": {"x": 2}}, {"a": MASK, "b": ~MASK & (np.arange(10) > 7)}, "got 3 of 10 that are in none"),
        ({"a": {"x": 1}, "b": ...}, {"a": ~MASK & MASK}, r"sides\['a'\] must not be empty, got no row for which"),
        ({"a": {"x": 1}, "b": ...}, {"a": MASK | ~MASK}, r"sides\['b'\] must not be empty, got 1 of 0 rows"),
        ({"a": 0.99, "b": 0.01}, {}, r"sides\['b'\] must not be empty, got 0.01 of 10 rows"),
    ],
)
def test_sides_that_no_rows_fit(sides, taken, message):
    with pytest.raises(ValueError, match=message):
        side_of_rows(as_wanted_sides(sides), 10, taken, np.random.default_rng(0))


def test_conditions_must_not_cut_groups_and_there_must_be_enough():
    groups = Groups(np.arange(10) // 4, ["D1", "D2", np.nan])
    with pytest.raises(ValueError, match="must not cut the groups of `by`, .* some rows of 'D2' on one side"):
        side_of_rows(as_wanted_sides({"a": {"x": 1}, "b": ...}), 10, {"a": MASK}, np.random.default_rng(0), groups)
    with pytest.raises(
        ValueError, match=r"at least as many groups as there are sides, got 3 groups for \['a', 'b', 'c', 'd'\]"
    ):
        side_of_rows(as_wanted_sides(dict.fromkeys("abcd", 0.25)), 10, {}, np.random.default_rng(0), groups)
