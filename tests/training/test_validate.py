import contextlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retune.training.devices import Devices
from retune.training.validate import validation_loss
from tests.training.conftest import flat
from tests.training.test_loss import padded_loss, random_tokens

TOKENS = random_tokens([5, 60, 17, 2, 33, 90, 8])


def test_is_the_mean_over_counted_tokens_not_over_records(base):
    with torch.no_grad():
        total = sum(padded_loss(base.load().model, TOKENS, [r]).double() for r in range(len(TOKENS)))
    with flat(base) as model:
        found = validation_loss(model, TOKENS, base.devices)
    assert found == pytest.approx(float(total) / int(TOKENS.counted.sum()), rel=1e-6)


@given(st.integers(1, 300))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_does_not_depend_on_how_records_are_put_together(base, pass_tokens):
    with flat(base) as model:
        found = validation_loss(model, TOKENS, base.devices, pass_tokens)
        assert found == pytest.approx(validation_loss(model, TOKENS, base.devices, 10_000), rel=1e-6)


def test_shares_of_several_processes_add_up(base, monkeypatch):
    sums = []
    with flat(base) as model:
        whole = validation_loss(model, TOKENS, base.devices)
        for rank in range(3):
            devices = Devices()
            devices.rank, devices.world = rank, 3
            monkeypatch.setattr(devices, "sum", lambda tensor: tensor)
            monkeypatch.setattr(devices, "together", contextlib.nullcontext)
            sums.append(validation_loss(model, TOKENS, devices))
    assert sum(sums) == pytest.approx(whole, rel=1e-6)
    assert all(0 < part < whole for part in sums)


@pytest.mark.slow
def test_a_pass_that_runs_out_of_memory_is_halved(base):
    layer = base.load().model.model.layers[0]

    def hook(layer, arguments):
        if arguments[0].shape[1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with flat(base) as model:
        whole = validation_loss(model, TOKENS, base.devices)
        handle = layer.register_forward_pre_hook(hook)
        try:
            halved = validation_loss(model, TOKENS, base.devices)
        finally:
            handle.remove()
    assert halved == pytest.approx(whole, rel=1e-6)


def test_poll_may_stop_it_and_the_mode_is_back(base):
    def stop():
        raise InterruptedError

    with flat(base) as model:
        model.train()
        with pytest.raises(InterruptedError):
            validation_loss(model, TOKENS, base.devices, poll=stop)
        assert model.training
        model.eval()
