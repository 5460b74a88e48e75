"""Norms of skipped tokens are those of the model, in fewer passes; norms of another kind are left to the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ftp_core.skipping.norms import MeasuredStates, normed, root_mean_square_norms

WIDTH = 48


class Biased(LlamaRMSNorm):
    """Has the name and the fields of a norm, and does something else."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        shifted: torch.Tensor = super().forward(hidden_states) + 0.1
        return shifted


class Block(nn.Module):
    """Has a norm, and a part that is none."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.mlp = norm, nn.Linear(WIDTH, WIDTH)


@pytest.mark.parametrize("made", [lambda: LlamaRMSNorm(WIDTH, 1e-2), lambda: nn.RMSNorm(WIDTH, 1e-2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_norms_answer_as_the_models_own(made: Callable[[], Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = made()
    norm.weight.data = 0.5 + torch.rand(WIDTH)
    norm = norm.to(dtype)
    hidden = torch.randn(3, 5, WIDTH) * torch.logspace(-2, 2, 5)[:, None]
    hidden[0, 0] = 0
    hidden = hidden.to(dtype)
    assert root_mean_square_norms(Block(norm)) == [norm]
    found = normed(norm, MeasuredStates(hidden))
    assert found.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6
    torch.testing.assert_close(found, norm(hidden), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "made", [lambda: GemmaRMSNorm(WIDTH), lambda: nn.LayerNorm(WIDTH), lambda: Biased(WIDTH), nn.Identity]
)
def test_norms_of_other_kinds_are_left_alone(made: Callable[[], nn.Module]) -> None:
    assert root_mean_square_norms(Block(made())) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 0.02, 1e-3])
@pytest.mark.parametrize("bias", [True, False])
def test_no_size_of_weights_makes_another_norm_one_of_these(dtype: torch.dtype, size: float, bias: bool) -> None:
    norm = nn.LayerNorm(WIDTH, bias=bias)
    norm.weight.data.fill_(size)
    assert root_mean_square_norms(Block(norm.to(dtype))) == []
    own = LlamaRMSNorm(WIDTH)
    own.weight.data.fill_(size)
    assert root_mean_square_norms(Block(own.to(dtype))) != []


def test_norms_whose_weights_are_elsewhere_are_left_alone() -> None:
    assert root_mean_square_norms(Block(LlamaRMSNorm(WIDTH).to("meta"))) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_of_zeros_have_a_scale(dtype: torch.dtype) -> None:
    zeros = torch.zeros(2, WIDTH, dtype=dtype)
    assert torch.equal(zeros * MeasuredStates(zeros).inverse_root_mean_square(), zeros)


def test_mean_squares_of_large_states_do_not_overflow() -> None:
    large = torch.full((1, WIDTH), 3e4, dtype=torch.float16)
    torch.testing.assert_close(MeasuredStates(large).mean_square, torch.tensor([[9e8]]), rtol=1e-3, atol=0)
