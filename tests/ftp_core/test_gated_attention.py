"""The gated attention of training, against plain autograd and against opening and closing keys one by one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ftp_core.attention import _GatedSoftmaxAttention


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
