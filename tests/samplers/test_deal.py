"""How the places of a pass are dealt out among ranks: arithmetic, checked by listing all places."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from annbatch.samplers._deal import Deal, without


def listed(intervals):
    return [place for first, last in intervals for place in range(first, last)]


@st.composite
def deals(draw):
    batch_size = draw(st.integers(1, 5))
    intervals, place = [], 0
    for _ in range(draw(st.integers(1, 4))):
        place += draw(st.integers(0, 3))
        intervals.append((place, place := place + draw(st.integers(1, 60))))
        place += 1
    where = draw(st.floats(0, 1, exclude_max=True))
    return {
        "intervals": intervals,
        "batch_size": batch_size,
        "request_rows": batch_size * draw(st.integers(1, 4)),
        "world_size": draw(st.integers(1, 5)),
        "drop_last": draw(st.booleans()),
        "equal_batches": draw(st.booleans()),
        "left_out_at": lambda n: int(where * n),
    }


@given(deals())
def test_every_place_is_dealt_out_once_or_left_out(arguments):
    deal = Deal.of(**arguments)
    n_ranks, batch_size = arguments["world_size"], arguments["batch_size"]
    everything = listed(arguments["intervals"])
    own = [listed(deal.places(rank, 0, deal.n_rows(rank))) for rank in range(n_ranks)]
    assert [len(places) for places in own] == [deal.n_rows(rank) for rank in range(n_ranks)]
    dealt = sorted(place for places in own for place in places)
    assert len(set(dealt)) == len(dealt)
    left_out = sorted(set(everything) - set(dealt))
    assert set(dealt) <= set(everything)
    # What is left out are neighbours.
    if left_out:
        first = everything.index(left_out[0])
        assert everything[first : first + len(left_out)] == left_out
    n_batches = [-(-len(places) // batch_size) for places in own]
    if arguments["drop_last"]:
        assert all(len(places) % batch_size == 0 for places in own)
        assert len(left_out) < batch_size * (n_ranks if arguments["equal_batches"] else 1)
    else:
        assert len(left_out) < (n_ranks if arguments["equal_batches"] else 1)
    if arguments["equal_batches"]:
        assert len(set(n_batches)) == 1
    assert max(n_batches) - min(n_batches) <= 1


@given(deals(), st.data())
def test_any_part_of_a_ranks_rows_is_that_of_the_whole(arguments, data):
    deal = Deal.of(**arguments)
    rank = data.draw(st.integers(0, arguments["world_size"] - 1))
    n_rows = deal.n_rows(rank)
    first = data.draw(st.integers(0, n_rows))
    last = data.draw(st.integers(first, n_rows))
    assert listed(deal.places(rank, first, last)) == listed(deal.places(rank, 0, n_rows))[first:last]


@given(deals(), st.integers(0, 70))
def test_the_rest_is_what_no_rank_has_done(arguments, n_done):
    deal = Deal.of(**arguments)
    left = [
        place
        for rank in range(arguments["world_size"])
        for place in listed(deal.places(rank, min(n_done, deal.n_rows(rank)), deal.n_rows(rank)))
    ]
    assert listed(deal.rest(n_done)) == sorted(left)


@given(deals(), st.data())
def test_places_that_are_taken_out(arguments, data):
    everything = listed(arguments["intervals"])
    taken = data.draw(st.lists(st.sampled_from(everything), unique=True))
    left = without(arguments["intervals"], np.array(taken, dtype=np.int64))
    assert listed(left.tolist()) == sorted(set(everything) - set(taken))


def test_by_hand():
    # 3 ranks, requests of 4: one round each, then 27 - 12 = 15 rows, five for each.
    deal = Deal.of([(0, 27)], request_rows=4, batch_size=2, world_size=3, drop_last=False, left_out_at=lambda n: 0)
    assert [deal.n_rows(rank) for rank in range(3)] == [9, 9, 9]
    assert deal.places(1, 0, 9) == [(4, 8), (17, 22)]
    # With 28 rows one rank would do a row more, but no batch more: its last batch had one row, and has two.
    deal = Deal.of([(0, 28)], request_rows=4, batch_size=2, world_size=3, drop_last=False, left_out_at=lambda n: 0)
    assert [deal.n_rows(rank) for rank in range(3)] == [10, 9, 9]
    # With 31 rows it would: the row is left out where the caller says.
    deal = Deal.of([(0, 31)], request_rows=4, batch_size=2, world_size=3, drop_last=False, left_out_at=lambda n: n - 2)
    assert [deal.n_rows(rank) for rank in range(3)] == [10, 10, 10]
    assert deal.gap == (29, 30)
    assert deal.places(2, 4, 10) == [(24, 29), (30, 31)]


def test_a_billion_rows_are_arithmetic():
    deal = Deal.of(
        [(0, 10**9)], request_rows=4096, batch_size=256, world_size=7, drop_last=True, left_out_at=lambda n: 5
    )
    n_rows = deal.n_rows(3)
    places = deal.places(3, n_rows - 4096, n_rows)
    assert sum(last - first for first, last in places) == 4096
    assert len(deal.rest(n_rows // 2)) < 20
    assert np.isclose(sum(b - a for a, b in deal.rest(n_rows // 2)), 10**9 / 2, rtol=0.01)
