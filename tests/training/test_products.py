"""Products by oneDNN are tried on every CPU here, not only on those where they are the faster ones."""

import pytest
import torch

from retune.training import products
from retune.training.lora_linear import LoraLinear, Weights

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()),
    reason="torch was built without one of the two libraries",
)


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(products, "by_onednn", lambda: True)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 129, 300, 1027])
def test_both_libraries_give_the_same(onednn, rows):
    x, weight, bias = torch.randn(rows, 24), torch.randn(40, 24), torch.randn(40)
    torch.testing.assert_close(
        products.linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias), atol=1e-4, rtol=1e-4
    )
    gradient = torch.randn(rows, 40)
    torch.testing.assert_close(products.matmul(gradient, weight), gradient @ weight, atol=1e-4, rtol=1e-4)
    before = torch.randn(rows, 24)
    found = products.matmul(gradient, weight, before.clone())
    torch.testing.assert_close(found, before + gradient @ weight, atol=1e-4, rtol=1e-4)


def test_rows_behind_the_own_do_not_matter(onednn):
    """They are read where memory has them: another trial's, or what was never written."""
    whole = torch.randn(80, 24)
    whole[70:] = torch.nan
    weight = torch.randn(40, 24)
    torch.testing.assert_close(
        products.linear(whole[:70], weight), whole[:70] @ weight.t(), atol=1e-4, rtol=1e-4
    )
    last = whole[5:70]  # its memory ends before the rows that it is rounded up to
    torch.testing.assert_close(products.linear(last, weight), last @ weight.t(), atol=1e-4, rtol=1e-4)


def test_room_for_the_product_is_not_copied(onednn, monkeypatch):
    monkeypatch.setattr(products, "pad", None)
    x = products.empty(70, 24, torch.empty(0)).normal_()
    assert x.shape == (70, 24)
    first = products.linear(x, torch.randn(24, 24))
    assert products.linear(first, torch.randn(24, 24)).shape == (70, 24)


def test_the_output_is_no_view_and_may_be_changed_in_place(onednn):
    a, b = torch.randn(2, 24, requires_grad=True), torch.randn(40, 2, requires_grad=True)
    x = torch.randn(1, 70, 24, requires_grad=True)
    out = LoraLinear.apply(x, Weights(torch.randn(40, 24), None, a, b), a, b)
    out.mul_(2).sum().backward()
    assert x.grad is not None
    assert a.grad is not None


def test_numbers_of_rows_are_few_and_little_is_computed_in_vain():
    found = {products.rounded_up(rows) for rows in range(256, 16385)}
    assert len(found) <= 16 * 6 + 1
    assert all(rows <= products.rounded_up(rows) <= rows * 17 / 16 + 1 for rows in range(256, 5000))


def test_other_types_and_devices_are_left_to_torch(onednn):
    x, weight = torch.randn(70, 24).double(), torch.randn(40, 24).double()
    assert torch.equal(products.linear(x, weight), torch.nn.functional.linear(x, weight))


def test_an_operator_that_fails_is_not_used(monkeypatch):
    monkeypatch.setattr(products, "_is_amd", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", _fails)
    products.by_onednn.cache_clear()
    try:
        assert not products.by_onednn()
    finally:
        products.by_onednn.cache_clear()


def test_where_it_fails_later_torch_multiplies(onednn, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", _fails)
    x, weight = torch.randn(70, 24), torch.randn(40, 24)
    assert torch.equal(products.linear(x, weight), torch.nn.functional.linear(x, weight))
    assert torch.equal(products.matmul(x @ weight.t(), weight), x @ weight.t() @ weight)


def _fails(*args):
    raise RuntimeError("could not create a primitive")
