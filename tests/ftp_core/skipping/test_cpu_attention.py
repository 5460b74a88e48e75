"""Attention on a CPU in shapes that its kernel is fast at, and a head that copies no weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ftp_core import SparsitySchedule
from ftp_core.cost.measure import Skipping, Unchanged
from ftp_core.skipping.cpu_attention import KERNEL, cpu_attention, kernel_for
from ftp_core.skipping.skipping_model import SkippingModel
from tests.ftp_core.tiny_models import N_BLOCKS, VOCABULARY, fresh_tiny


class Attention(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 3),
    key_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    n_queries=st.integers(2, 50),
    more_keys=st.integers(0, 40),
    is_masked=st.booleans(),
    scaling=st.sampled_from([None, 0.3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 100),
)
def test_it_computes_what_sdpa_of_transformers_computes(
    rows, key_heads, groups, n_queries, more_keys, is_masked, scaling, dtype, seed
):
    torch.manual_seed(seed)
    n_keys = n_queries + more_keys if is_masked else n_queries
    query = torch.randn(rows, key_heads * groups, n_queries, 8, dtype=dtype)
    key, value = torch.randn(2, rows, key_heads, n_keys, 8, dtype=dtype)
    mask = None
    if is_masked:
        mask = torch.rand(rows, 1, n_queries, n_keys) < 0.5
        mask[..., 0] = True
    args = Attention(groups), query, key, value, mask
    ours, _ = cpu_attention(*args, scaling=scaling)
    theirs, _ = sdpa_attention_forward(*args, scaling=scaling)
    assert ours.shape == theirs.shape
    assert ours.is_contiguous()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("kernel", "dtype", "device", "is_masked", "length", "expected"),
    [
        ("sdpa", torch.bfloat16, "cpu", False, 9, KERNEL),
        ("sdpa", torch.float32, "cpu", True, 9, KERNEL),
        ("sdpa", torch.float32, "cpu", False, 9, "sdpa"),
        ("sdpa", torch.bfloat16, "meta", True, 9, "sdpa"),
        ("eager", torch.bfloat16, "cpu", True, 9, "eager"),
        # A decoded token.
        ("sdpa", torch.bfloat16, "cpu", False, 1, "sdpa"),
    ],
)
def test_it_stands_in_for_sdpa_where_it_is_faster(kernel, dtype, device, is_masked, length, expected):
    hidden = torch.zeros(1, length, 4, dtype=dtype, device=device)
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=device) if is_masked else None
    assert kernel_for(kernel, hidden, mask) == expected


class BatchedProducts(TorchDispatchMode):
    """Collects how many numbers the factors of batched products of matrices have."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.bmm:
            self.sizes += [factor.numel() for factor in args]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", [Unchanged(), Skipping("half", SparsitySchedule.uniform(0.5, N_BLOCKS))])
@torch.no_grad()
def test_the_head_of_a_frozen_model_copies_no_weights_for_the_last_tokens(variant):
    model = SkippingModel(fresh_tiny("llama")).model
    with BatchedProducts() as products:
        logits_BV, _ = variant.step_of(model)(torch.arange(3, 27).view(2, 12), None)
    assert logits_BV.shape == (2, VOCABULARY)
    # The weights of the head would be copied for each row.
    assert max(products.sizes, default=0) < model.get_output_embeddings().weight.numel()


@pytest.mark.parametrize("name", ["llama", "olmo2", "gpt_neox", "phi3"])
@torch.no_grad()
def test_blocks_copy_no_weights_for_tokens_that_only_keep_their_keys(name):
    model = SkippingModel(fresh_tiny(name)).model
    kept = Skipping("kept", SparsitySchedule.of_halves([0.5] * N_BLOCKS, [0.3] * N_BLOCKS, True))
    least = min(one.numel() for one in model.parameters() if one.ndim == 2)
    with BatchedProducts() as products:
        kept.step_of(model)(torch.arange(3, 27).view(2, 12), None)
    assert max(products.sizes, default=0) < least
