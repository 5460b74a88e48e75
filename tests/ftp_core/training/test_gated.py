"""The gated attention of training, against plain autograd and against opening and closing keys one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ftp_core.skipping.attention import AttentionGate, _gated_attention, _GatedSoftmaxAttention


def reference(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, scaling: float) -> Tensor:
    """exp(score) * gate, normalised; a token always sees itself."""
    length = query.shape[2]
    factor = torch.where(torch.eye(length, dtype=torch.bool), 1.0, gate[:, None, None, :].expand(-1, -1, length, -1))
    weights = ((query @ key.transpose(2, 3)) * scaling).exp() * factor
    weights = weights * torch.ones(length, length, dtype=weights.dtype).tril()
    return weights / weights.sum(-1, keepdim=True) @ value


@given(seed=st.integers(0, 2**31), length=st.integers(1, 9), rows=st.integers(1, 3))
def test_gradients_are_those_of_autograd_and_for_closed_keys_what_opening_them_changes(
    seed: int, length: int, rows: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    query, key, value, weight = torch.randn(4, rows, 2, length, 3, generator=draw, dtype=torch.float64)
    gate = torch.randint(0, 2, (rows, length), generator=draw).double()
    asked = torch.randint(0, length, (rows, 2), generator=draw)
    inputs = [tensor.clone().requires_grad_() for tensor in (query, key, value, gate)]
    output, heard = _GatedSoftmaxAttention.apply(*inputs, asked, 0.7)
    found = torch.autograd.grad((output * weight).sum(), inputs)

    plain = [tensor.clone().requires_grad_() for tensor in (query, key, value, gate)]
    expected_output = reference(*plain, 0.7)
    expected = torch.autograd.grad((expected_output * weight).sum(), plain)
    torch.testing.assert_close(output, expected_output)
    assert heard.shape == (rows, 2, 2, length)
    torch.testing.assert_close(heard.sum(-1), torch.ones(rows, 2, 2, dtype=torch.float64))
    for one, other in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(one, other)
    for row in range(rows):
        for token in range(length):
            if gate[row, token] == 1:
                torch.testing.assert_close(found[3][row, token], expected[3][row, token])
                continue
            opened = gate.clone()
            opened[row, token] = 1
            change = reference(query, key, value, opened, 0.7) - reference(query, key, value, gate, 0.7)
            torch.testing.assert_close(found[3][row, token], (change * weight).sum())


def test_a_closed_key_that_would_take_all_attention_has_a_finite_gradient() -> None:
    query = torch.ones(1, 1, 3, 2)
    key = torch.tensor([[[[500.0, 500.0], [0.0, 0.0], [0.0, 0.0]]]])
    value = torch.randn(1, 1, 3, 2, generator=torch.Generator().manual_seed(0))
    gate = torch.tensor([[0.0, 1.0, 1.0]], requires_grad=True)
    output, _ = _GatedSoftmaxAttention.apply(query, key, value, gate, torch.zeros(1, 1, dtype=torch.int64), 1.0)
    [gradient] = torch.autograd.grad(output.sum(), gate)
    assert bool(gradient.isfinite().all())
    # Each of the two later queries would give it all of its weight.
    expected = 2 * value[0, 0, 0].sum() - value[0, 0, 1].sum() - value[0, 0, 1:].mean(0).sum()
    torch.testing.assert_close(gradient[0, 0], expected)


def random_inputs(dtype: torch.dtype, length: int = 12) -> tuple[list[Tensor], Tensor]:
    """Query, key, value `[2, 3, L, 4]`, and a gate `[2, L]` that is closed for some."""
    draw = torch.Generator().manual_seed(0)
    tensors = [tensor.to(dtype) for tensor in torch.randn(3, 2, 3, length, 4, generator=draw, dtype=torch.float64)]
    return tensors, torch.randint(0, 2, (2, length), generator=draw).double()


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, None), (None, 1.5), (3, 0.8)])
@pytest.mark.parametrize("scale", [0.5, 100.0])
def test_outputs_and_weights_heard_are_those_of_a_softmax_over_the_open_keys(
    window: int | None, softcap: float | None, scale: float
) -> None:
    (query, key, value), gate = random_inputs(torch.float64)
    length = query.shape[2]
    asked = torch.tensor([[0, 5, 11], [11, 11, 3]])
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    distance = torch.arange(length)[:, None] - torch.arange(length)
    reachable = (distance >= 0) & (distance < (window or length))
    seen = ((gate[:, None, None, :] == 1) & reachable) | torch.eye(length, dtype=torch.bool)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    output, heard = _GatedSoftmaxAttention.apply(query, key, value, gate, asked, scale, window, softcap)
    torch.testing.assert_close(output, weights @ value)
    torch.testing.assert_close(heard, weights.gather(2, asked[:, None, :, None].expand(-1, 3, -1, length)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_gradients_in_it_and_weights_in_float32(dtype: torch.dtype) -> None:
    tensors, gate = random_inputs(dtype)
    inputs = [*(tensor.requires_grad_() for tensor in tensors), gate.float().requires_grad_()]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    asked = torch.tensor([[4, 11], [0, 7]])
    output, heard = _GatedSoftmaxAttention.apply(*inputs, asked, 0.7)
    assert (output.dtype, heard.dtype) == (dtype, torch.float32)
    found = torch.autograd.grad(output.sum(), inputs)
    assert [gradient.dtype for gradient in found] == [dtype, dtype, dtype, torch.float32]
    expected_output, expected_heard = _GatedSoftmaxAttention.apply(*exact, asked, 0.7)
    torch.testing.assert_close(heard.double(), expected_heard, atol=0.02, rtol=0.02)
    expected = torch.autograd.grad(expected_output.sum(), exact)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=0.03, rtol=0.05)


@pytest.mark.parametrize("value_dtype", [torch.bfloat16, torch.float32])
def test_queries_and_keys_that_rotary_embedding_promoted_join_the_values_under_autocast(
    value_dtype: torch.dtype,
) -> None:
    (query, key, value), gate = random_inputs(torch.float32)
    inputs = [query.requires_grad_(), key.requires_grad_(), value.to(value_dtype).requires_grad_()]
    attention = AttentionGate(gate.float().requires_grad_(), torch.tensor([[11], [11]]), torch.ones(2, 1))
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = _gated_attention(nn.Module(), *inputs, None, gate=attention)
    alike = [tensor.detach().to(value_dtype) for tensor in inputs]
    expected, _ = _GatedSoftmaxAttention.apply(*alike, gate.float(), attention.observed, 0.5)
    torch.testing.assert_close(output, expected.transpose(1, 2), atol=0.0, rtol=0.0)
    assert output.dtype == value_dtype
    assert attention.received is not None and attention.received.dtype == torch.float32
    # As autograd does it: outside of autocast.
    gradients = torch.autograd.grad(output.float().square().sum(), [*inputs, attention.gate])
    assert [gradient.dtype for gradient in gradients] == [torch.float32, torch.float32, value_dtype, torch.float32]
    assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in gradients)
