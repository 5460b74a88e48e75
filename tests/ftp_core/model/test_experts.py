"""Experts of a pruned model run as those of the dense one do, or as is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ftp_core.model.causal_lm import FTPForCausalLM
from tests.ftp_core.tiny_models import N_BLOCKS, fresh_tiny

WAYS = ("eager", "batched_mm", "grouped_mm")
SCHEDULE = [0.5] * N_BLOCKS


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("way", WAYS)
def test_pruning_leaves_experts_as_they_run(name: str, way: str) -> None:
    dense = fresh_tiny(name)
    dense.set_experts_implementation(way)
    pruned = FTPForCausalLM.from_dense(dense, SCHEDULE)
    experts = [module for module in pruned.base.modules() if type(module).__name__.endswith("Experts")]
    assert experts and {module.config._experts_implementation for module in experts} == {way}
    assert dense.config._experts_implementation == way


def test_a_pruned_model_that_skips_nothing_answers_as_the_dense_one_to_the_bit() -> None:
    dense, ids = fresh_tiny("mixtral"), torch.randint(3, 50, (2, 20))
    expected = dense(ids).logits
    assert torch.equal(FTPForCausalLM.from_dense(dense, [0.0] * N_BLOCKS)(ids).logits, expected)


def test_a_loaded_model_runs_experts_as_dense_ones_do_by_default_or_as_asked(tmp_path: Path) -> None:
    dense = fresh_tiny("mixtral")
    FTPForCausalLM.from_dense(dense, SCHEDULE).save_pretrained(tmp_path)
    default = AutoModelForCausalLM.from_config(dense.config).config._experts_implementation
    assert FTPForCausalLM.from_pretrained(tmp_path).base.config._experts_implementation == default
    for way in WAYS:
        loaded = FTPForCausalLM.from_pretrained(tmp_path, experts_implementation=way)
        assert loaded.base.config._experts_implementation == way
    for way in WAYS:
        loaded.set_experts_implementation(way)
        assert loaded.base.config._experts_implementation == way
