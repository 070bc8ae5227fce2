"""Transformers' own forward over padded batches and over single records: the same sums, and not all logits at once."""

import pytest
import torch

from retune.data.batches import flatten, passes
from retune.events import Note
from retune.models import pick_device
from retune.study import Training
from retune.training import head, lora, self_check
from retune.training.devices import Devices
from retune.training.loss import layout, loss_sum
from retune.training.passes import Passes
from retune.training.plain_forward import Reading, by_plain_forward, pad

from . import zoo
from .test_loss import random_tokens

LENGTHS = [9, 41, 3, 20, 20, 33]
TOKENS = random_tokens(LENGTHS, zoo.VOCABULARY)


@pytest.fixture
def model():
    return zoo.build("bloom").to(pick_device())  # alibi: nothing flattened passes


def whole(batch):
    return batch.to(pick_device())


def test_records_are_padded_behind_and_their_rows_found_again():
    batch = flatten(TOKENS, [2, 1, 0])
    ids, rows = pad(batch)
    assert ids.shape == (3, 41)
    for row, record in enumerate([2, 1, 0]):
        own = TOKENS.ids[int(TOKENS.offsets[record]) : int(TOKENS.offsets[record + 1])]
        assert ids[row, : len(own)].tolist() == own.tolist()
        assert set(ids[row, len(own) :].tolist()) <= {int(own[-1])}
    assert torch.equal(ids.flatten()[rows + 1], batch.targets)


def test_a_padded_run_holds_little_padding():
    lengths = sorted([3, 5, 40, 41, 42, 43, 100, 7])
    runs = list(passes(lengths, 1000, padded=True))
    assert [place for run in runs for place in run] == list(range(8))
    assert len(runs) == 4
    for run in runs:
        sizes = [lengths[place] for place in run]
        assert sum(sizes) >= 0.8 * max(sizes) * len(sizes)
    assert max(len(run) * max(lengths[p] for p in run) for run in passes(lengths, 90, padded=True)) <= 100
    assert list(passes([5, 5, 5], 10, padded=True)) == [[0, 1], [2]]


@pytest.mark.parametrize("reading", [Reading(False, True), Reading(True, True), Reading(True, False)])
def test_the_sums_are_those_of_single_records(model, reading, monkeypatch):
    made = []
    real = head._loss
    monkeypatch.setattr(
        head, "_loss", lambda logits, wanted: made.append(len(logits)) or real(logits, wanted)
    )
    monkeypatch.setattr(head, "MAX_LOGITS", zoo.VOCABULARY * 7)
    batch = whole(flatten(TOKENS, range(len(TOKENS))))
    with torch.no_grad():
        right = loss_sum(model, batch)
        assert made == []
        with by_plain_forward(model, reading=reading):
            assert layout(model) == ("padded" if reading.padded else "alone")
            torch.testing.assert_close(loss_sum(model, batch), right, rtol=1e-6, atol=1e-5)
    assert layout(model) == "alone"
    assert bool(made) == reading.in_parts
    assert max(made, default=0) <= 7  # tokens whose logits are there at once


def gradients_of(model, dropout=0.0, fails_above=None, records=tuple(range(len(LENGTHS))), tokens=TOKENS):
    """Return losses by pass, the gradients of a step and what was reported, of an adapter on `model`."""
    chosen = Training(rank=4, alpha=8, dropout=dropout, target_modules=zoo.targets(model))
    with lora.adapted(model, chosen, "x", 0) as tuned:
        lora.add_noise(tuned)
        found = self_check.check(tuned, None, 64, train=True)
        assert found.way == "padded"
        tuned.train()
        weights = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
        notes, losses = [], []

        def loss(model, batch):
            if fails_above is not None and max(batch.lengths) * len(batch.lengths) > fails_above:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            losses.append(loss_sum(model, batch))
            return losses[-1]

        with self_check.reading(tuned, found):
            passes = Passes(
                tuned, model, tokens, weights, Devices(), loss, lambda x: x, notes.append, layout(tuned)
            )
            torch.manual_seed(5)
            total = passes.add_gradients(list(records), 50, 0, "7 0")
        return float(total), torch.cat([w.grad.flatten() for w in weights]), losses, notes


def test_a_padded_pass_that_runs_out_of_memory_is_halved(model):
    total, gradients, losses, notes = gradients_of(model)
    assert notes == []
    halved, of_halved, more, notes = gradients_of(model, fails_above=41)
    assert len(more) > len(losses)
    assert all(isinstance(note, Note) and "in two halves" in note.text for note in notes)
    assert notes
    assert halved == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(of_halved, gradients, rtol=1e-3, atol=1e-5)


def test_records_in_passes_of_their_own_are_dropped_differently(model):
    """Two equal records, each in its own pass: were both drawn from one state, their losses would be equal."""
    twice = type(TOKENS)(
        TOKENS.ids[9:50].repeat(2), TOKENS.counted[9:50].repeat(2), torch.tensor([0, 41, 82])
    )
    *_, losses, _ = gradients_of(model, dropout=0.5, fails_above=41, records=(0, 1), tokens=twice)
    assert len(losses) == 2
    assert float(losses[0]) != float(losses[1])
