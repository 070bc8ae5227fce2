"""The path of the GPU, on the CPU: `varlen_attn` with the signatures that torch's versions have, computed plainly."""

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from retune.training import attention
from retune.training.attention import AttentionOptions, segments


def plain(query, key, value, cu_seq_q, causal, scale, window, grouped):
    """Attention inside each record, ``(tokens, heads, size)``; as strict about shapes as torch's own."""
    assert causal or window == (-1, 0)
    assert cu_seq_q.dtype == torch.int32
    if not grouped and query.shape[1] != key.shape[1]:
        raise ValueError("query and key heads must match, or set enable_gqa=True")
    parts = []
    for start, end in pairwise(cu_seq_q.tolist()):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)


def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    return plain(query, key, value, cu_seq_q, is_causal, None, None, False)


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    return plain(query, key, value, cu_seq_q, False, scale, window_size, False)


def torch_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False,
):  # fmt: skip
    return plain(query, key, value, cu_seq_q, False, scale, window_size, enable_gqa)


@pytest.mark.parametrize("flash", [torch_2_10, torch_2_11, torch_2_12])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 8**-0.5, 0.1])
def test_every_torch_gives_the_same(flash, key_heads, scale):
    torch.manual_seed(0)
    lengths = [5, 1, 9]
    query = torch.randn(1, 4, 15, 8, requires_grad=True)
    key, value = (torch.randn(1, key_heads, 15, 8, requires_grad=True) for _ in "kv")
    records = segments(lengths, lengths, torch.device("cpu"))
    weigh = torch.randn(1, 15, 4, 8)
    found = []
    for attend in (
        lambda *given: attention.attend(*given, AttentionOptions(scale)),
        lambda *given: attention._attend_by_flash(flash, *given, scale),
    ):
        out = attend(query, key, value, records)
        found.append((out, *torch.autograd.grad((out * weigh).sum(), (query, key, value))))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_installed_torch_is_called_with_what_it_takes(monkeypatch):
    """Only its kernel is replaced: the arguments go through torch's own checks."""
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="torch < 2.10 has no varlen_attn")
    seen = []

    def kernel(query, *arguments, **options):
        seen.append((arguments, options))
        return query.clone(), None, None

    monkeypatch.setattr(varlen, "_varlen_attn", kernel)
    monkeypatch.setattr(torch.ops.torch_attn, "_varlen_attn", kernel, raising=False)
    records = segments([3, 4], [3, 4], torch.device("cpu"))
    query, key = torch.randn(1, 4, 7, 8), torch.randn(1, 2, 7, 8)
    out = attention._attend_by_flash(attention._varlen(), query, key, key, records, 0.1)
    assert out.shape == (1, 7, 4, 8)
    assert len(seen) == 1
