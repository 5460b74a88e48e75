"""Streamed divergences and log-probabilities are those of whole tables in float64, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ftp_core.cost.memory import AllocationTracker
from ftp_core.quality.divergence import compare, divergence, likeliest, log_probabilities
from ftp_core.skipping import head as head_module
from ftp_core.skipping.head import Head
from tests.ftp_core.made_up_heads import identity_head


class Opaque(nn.Module):
    """A head that cannot be taken apart, like a quantised one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden)


def capped(raw: Tensor) -> Tensor:
    return (raw / 8).tanh() * 8


FINISHES = {"plain": lambda raw: raw, "scaled": lambda raw: raw / 3, "capped": capped}


def random_head(
    vocabulary: int, width: int, finish: Callable[[Tensor], Tensor], dtype: torch.dtype, opaque: bool, seed: int
) -> tuple[Head, nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        linear = nn.Linear(width, vocabulary, bias=bool(seed % 2)).to(dtype).requires_grad_(False)
        linear.weight.normal_()
    return Head(Opaque(linear) if opaque else linear, finish, vocabulary), linear


def whole_logits(linear: nn.Linear, finish: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """In float64, in one table."""
    bias = None if linear.bias is None else linear.bias.double()
    return finish(nn.functional.linear(hidden.double(), linear.weight.double(), bias))


cases = st.fixed_dictionaries(
    {
        "vocabulary": st.integers(1, 40),
        "width": st.integers(1, 6),
        "finish": st.sampled_from(sorted(FINISHES)),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        "opaque": st.booleans(),
        "seed": st.integers(0, 99),
    }
)


@pytest.mark.parametrize("opaque", [(False, False), (True, False), (False, True)])
def test_models_with_heads_of_their_own_are_compared_by_them(
    opaque: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "_NUMBERS_AT_ONCE", 16)
    plain, draw = FINISHES["plain"], torch.Generator().manual_seed(0)
    head, linear = random_head(11, 3, plain, torch.float32, opaque[0], seed=1)
    dense_head, dense_linear = random_head(11, 5, plain, torch.float32, opaque[1], seed=2)
    hidden, dense = torch.randn(7, 3, generator=draw), torch.randn(7, 5, generator=draw)
    targets = torch.arange(7)
    kl, nll = compare(head, hidden, dense, targets, dense_head)
    found, expected = (
        whole_logits(*of).log_softmax(-1) for of in ((linear, plain, hidden), (dense_linear, plain, dense))
    )
    torch.testing.assert_close(kl.double(), (expected.exp() * (expected - found)).sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(nll.double(), -found[targets, targets], atol=1e-5, rtol=1e-5)


@given(case=cases, n_tokens=st.integers(1, 9), at_once=st.integers(1, 120), temperature=st.sampled_from([1.0, 2.5]))
def test_streamed_figures_and_gradients_are_those_of_whole_tables(
    case: dict, n_tokens: int, at_once: int, temperature: float
) -> None:
    if case["opaque"]:  # what such a head returns is rounded by itself
        case = case | {"dtype": torch.float32}
    finish, draw = FINISHES[case["finish"]], torch.Generator().manual_seed(case["seed"])
    head, linear = random_head(case["vocabulary"], case["width"], finish, case["dtype"], case["opaque"], case["seed"])
    hidden, dense = (torch.randn(n_tokens, case["width"], generator=draw).to(case["dtype"]) for _ in range(2))
    words = torch.randint(case["vocabulary"], (n_tokens, 3), generator=draw)
    weight, weights = (torch.randn(*shape, generator=draw) for shape in ((n_tokens,), (n_tokens, 3)))
    n_likeliest = min(5, case["vocabulary"])

    exact = hidden.double().requires_grad_()
    q, p = (whole_logits(linear, finish, of) / temperature for of in (exact, dense))
    q_log, p_log = q.log_softmax(-1), p.log_softmax(-1)
    kl, of_words = (p_log.exp() * (p_log - q_log)).sum(-1), q_log.gather(-1, words)
    of_kl = torch.autograd.grad((kl * weight).sum(), exact, retain_graph=True)[0]
    of_log_probs = torch.autograd.grad((of_words * weights).sum(), exact)[0]

    at_first = head_module._NUMBERS_AT_ONCE
    try:
        head_module._NUMBERS_AT_ONCE = at_once
        leaf = hidden.clone().requires_grad_()
        found_kl = divergence(head, leaf, dense, temperature)
        found_words = log_probabilities(head, leaf, words, temperature)
        found_of_kl = torch.autograd.grad((found_kl * weight).sum(), leaf)[0]
        found_of_words = torch.autograd.grad((found_words * weights).sum(), leaf)[0]
        best, chosen = likeliest(head, dense, n_likeliest, temperature)
        kl_at_1, nll_at_1 = compare(head, hidden, dense, words[:, 0])
    finally:
        head_module._NUMBERS_AT_ONCE = at_first

    close = {"atol": 2e-5, "rtol": 2e-5}
    assert {found.dtype for found in (found_kl, found_words, best, kl_at_1, nll_at_1)} == {torch.float32}
    torch.testing.assert_close(found_kl.double(), kl, **close)
    torch.testing.assert_close(found_words.double(), of_words, **close)
    torch.testing.assert_close(best.double(), p_log.topk(n_likeliest, dim=-1).values, **close)
    torch.testing.assert_close(p_log.gather(-1, chosen), best.double(), **close)
    # Gradients are rounded once to the precision of hidden states, for every part of the vocabulary.
    unit = torch.finfo(case["dtype"]).eps * 4 + 2e-5
    scale = float(of_kl.abs().max() + of_log_probs.abs().max()) + 1
    torch.testing.assert_close(found_of_kl.double(), of_kl, atol=unit * scale, rtol=unit)
    torch.testing.assert_close(found_of_words.double(), of_log_probs, atol=unit * scale, rtol=unit)
    if temperature == 1.0:
        torch.testing.assert_close(kl_at_1.double(), kl.detach(), **close)
        torch.testing.assert_close(nll_at_1.double(), -of_words[:, 0].detach(), **close)


def test_words_that_both_models_rule_out_add_nothing_even_if_they_fill_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "_NUMBERS_AT_ONCE", 8)  # parts of two words
    head = identity_head(4)
    head = Head(head.module, lambda raw: raw.masked_fill(raw == -99.0, -math.inf), 4)
    dense = torch.tensor([[0.5, 0.5, -1.0, -1.0]]).log().nan_to_num(nan=-99.0).roll(2, 1)
    pruned = torch.tensor([[0.25, 0.75, -1.0, -1.0]]).log().nan_to_num(nan=-99.0).roll(2, 1)
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    kl, nll = compare(head, pruned, dense, torch.tensor([2]))
    assert float(kl) == pytest.approx(expected) and float(nll) == pytest.approx(-math.log(0.25))
    # What the dense model holds possible must not be impossible.
    of_another = torch.full((1, 4), -99.0).index_fill(1, torch.tensor([0]), 0.0)
    assert compare(head, of_another, dense, torch.tensor([0]))[0] == torch.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_are_not_rounded_to_the_precision_of_the_weights(dtype: torch.dtype) -> None:
    """Rounded logits of 20 differ by 0.06 in bfloat16, which adds 0.001 to the divergence of equal predictions."""
    head, linear = random_head(1000, 64, FINISHES["plain"], dtype, opaque=False, seed=0)
    hidden = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    found, exact = head.logits(hidden, slice(0, 1000)), whole_logits(linear, FINISHES["plain"], hidden)
    assert float((found - exact).abs().max()) < 1e-4
    assert float((linear(hidden).float() - found).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_does_not_grow_with_tokens_and_words(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "_NUMBERS_AT_ONCE", 2**20)
    vocabulary, width, n_tokens, ten_tables = 150_000, 64, 100, 10 * 4 * 2**20
    head, _ = random_head(vocabulary, width, FINISHES["capped"], dtype, opaque=False, seed=1)
    draw = torch.Generator().manual_seed(0)
    hidden, dense = (torch.randn(n_tokens, width, generator=draw).to(dtype) for _ in range(2))
    targets = torch.randint(vocabulary, (n_tokens,), generator=draw)
    assert ten_tables < 4 * n_tokens * vocabulary
    with AllocationTracker() as tracker, torch.no_grad():
        compare(head, hidden, dense, targets)
        likeliest(head, hidden, 64)
    assert tracker.peak_bytes < ten_tables
    leaf = hidden.clone().requires_grad_()
    with AllocationTracker() as tracker:
        loss = divergence(head, leaf, dense).mean() + log_probabilities(head, leaf, targets[:, None]).mean()
        loss.backward()
    assert tracker.peak_bytes < ten_tables
