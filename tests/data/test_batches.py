from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from retune.data.batches import epoch_batches, flatten, passes, share
from retune.data.tokens import pack


def made(lengths):
    """Record r of length n holds 100 r, 100 r + 1, …; its second half is counted."""
    return pack(
        [([100 * r + k for k in range(n)], [k >= n // 2 for k in range(n)]) for r, n in enumerate(lengths)]
    )


def test_flatten_by_hand():
    batch = flatten(made([4, 3, 2]), [2, 0])
    assert batch.ids.tolist() == [[200, 201, 0, 1, 2, 3]]
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2, 3]]
    assert batch.lengths == [2, 4]
    assert batch.targets.tolist() == [201, 2, 3]
    assert batch.rows.tolist() == [0, 3, 4]


def test_either_every_tail_is_shorter_than_its_record_or_none_is():
    prompted = [([1] * 5, [False, False, True, True, True]), ([2] * 4, [False, False, False, True])]
    assert flatten(pack(prompted), [0, 1]).tails == [4, 2]
    plain = ([3] * 3, [False, True, True])
    for records in ([0, 1], [0, 2], [2]):
        batch = flatten(pack([*prompted, plain]), records)
        assert batch.tails == batch.lengths


@given(st.data(), st.lists(st.integers(2, 9), min_size=1, max_size=8))
def test_a_prediction_is_always_from_the_token_before_in_the_same_record(data, lengths):
    tokens = made(lengths)
    records = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, max_size=6))
    batch = flatten(tokens, records)
    assert torch.equal(batch.ids[0][batch.rows] + 1, batch.targets)  # made() counts upwards inside a record
    assert sum(batch.lengths) == batch.ids.shape[1]
    assert len(batch.rows) == int(tokens.counts[records].sum())


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31 - 1), st.integers(0, 5))
def test_an_epoch_visits_every_record_once_in_an_order_of_its_own(records, size, seed, epoch):
    found = epoch_batches(records, size, seed, epoch)
    assert sorted(r for batch in found for r in batch) == list(range(records))
    assert [len(batch) for batch in found[:-1]] == [size] * (len(found) - 1)
    assert found == epoch_batches(records, size, seed, epoch)
    if records >= 20:
        assert found != epoch_batches(records, size, seed, epoch + 1)
        assert found != epoch_batches(records, size, seed + 1, epoch)


@given(st.lists(st.integers(), max_size=9), st.integers(1, 5))
def test_shares_are_a_partition(records, world):
    shares = [share(records, rank, world) for rank in range(world)]
    assert sorted(r for part in shares for r in part) == sorted(records)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 100))
def test_passes_hold_the_limit_and_every_record_in_order(lengths, limit):
    runs = list(passes(lengths, limit))
    assert [place for run in runs for place in run] == list(range(len(lengths)))
    assert all(len(run) == 1 or sum(lengths[place] for place in run) <= limit for run in runs)
    for run, after in pairwise(runs):
        assert sum(lengths[place] for place in [*run, after[0]]) > limit
