"""A pruned model whose halves of blocks skip apart runs, generates, is saved and loaded like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from ftp_core.errors import ModelError, ScheduleError
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.model.model_card import CARD
from ftp_core.routers import (
    FEATURES_OF_HALVES,
    DynamicRouter,
    HiddenRouter,
    LocalRouter,
    OnePassRouter,
    Router,
    StaticRouter,
)
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.families import family_of
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import PromptBatch
from ftp_core.training.calibration import calibrate_thresholds
from tests.ftp_core.slow_reference import slow_logits
from tests.ftp_core.tiny_models import CONFIGS, N_BLOCKS, VOCABULARY, each, fresh_tiny, tiny

ABLE = [name for name in CONFIGS if family_of(tiny(name).config).halves is not None]
HALVES = SparsitySchedule.of_halves([0.5, 0.3, 0.6], [0.3, 0.6, 0.6], [True, False, False])
PLAIN = SparsitySchedule([0.5, 0.3, 0.6])
shares = st.lists(st.sampled_from([0.0, 0.3, 0.55, 0.8]), min_size=N_BLOCKS, max_size=N_BLOCKS)
flags = st.lists(st.booleans(), min_size=N_BLOCKS, max_size=N_BLOCKS)
words = st.integers(3, VOCABULARY - 1)


def drawn(router: Any) -> Any:
    """The router with every weight drawn."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(generator=generator)
    return router


def thresholds() -> Router:
    prompts = PromptBatch(drawn_ids(4, 40), torch.full((4,), 40))
    router = drawn(DynamicRouter(3, FEATURES_OF_HALVES))
    return calibrate_thresholds(SkippingModel(tiny()), router, prompts, HALVES)


ROUTERS = {
    "static": StaticRouter,
    "dynamic": lambda: drawn(DynamicRouter(3, FEATURES_OF_HALVES)),
    "local": lambda: drawn(LocalRouter(N_BLOCKS, 3, halves=True)),
    "hidden": lambda: drawn(HiddenRouter(32, halves=True)),
    "one-pass": lambda: drawn(OnePassRouter(32, N_BLOCKS, halves=True)),
    "thresholds": thresholds,
}


def drawn_ids(n_rows: int, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (n_rows, length), generator=torch.Generator().manual_seed(n_rows + length))


@pytest.mark.parametrize("name", each(ABLE))
@settings(max_examples=5)
@given(
    prompt=st.lists(words, min_size=1, max_size=20),
    completion=st.lists(words, min_size=1, max_size=4),
    schedule=st.builds(SparsitySchedule.of_halves, shares, shares, flags),
    kind=st.sampled_from(["static", "dynamic"]),
)
def test_prompts_and_decoded_tokens_equal_a_masked_full_computation(
    name: str, prompt: list[int], completion: list[int], schedule: SparsitySchedule, kind: str
) -> None:
    expected, _ = slow_logits(tiny(name), prompt, completion, schedule, ROUTERS[kind]())
    pruned = FTPForCausalLM.from_dense(tiny(name), schedule, ROUTERS[kind]()).eval()
    with torch.no_grad():
        whole = pruned(torch.tensor([prompt + completion]), prompt_length=len(prompt)).logits[0]
        first = pruned(torch.tensor([prompt]), use_cache=True)
        decoded, cache = [first.logits[0, -1]], first.past_key_values
        for token in completion:
            decoded.append(pruned(torch.tensor([[token]]), past_key_values=cache).logits[0, -1])
    torch.testing.assert_close(whole, expected, atol=5e-4, rtol=1e-3)
    torch.testing.assert_close(torch.stack(decoded), expected[len(prompt) - 1 :], atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_batch_generates_what_its_rows_generate_alone(name: str, kind: str) -> None:
    pruned = FTPForCausalLM.from_dense(tiny(name), HALVES, ROUTERS[kind]()).eval()
    rows = [drawn_ids(1, length)[0] for length in (20, 13, 17)]
    ids = torch.stack([torch.nn.functional.pad(row, (20 - len(row), 0)) for row in rows])
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    together = pruned.generate(ids, attention_mask=(ids > 0).long(), **options)
    for row, found in zip(rows, together, strict=True):
        alone = pruned.generate(row[None], attention_mask=torch.ones_like(row[None]), **options)
        assert found[20:].tolist() == alone[0, len(row) :].tolist()
    beams = pruned.generate(ids[:1], attention_mask=torch.ones_like(ids[:1]), num_beams=3, **options)
    assert beams.shape == (1, 26)


@pytest.mark.parametrize("include_base", [True, False])
@pytest.mark.parametrize("kind", list(ROUTERS))
def test_a_saved_model_loads_as_it_was(tmp_path: Path, include_base: bool, kind: str) -> None:
    fresh_tiny().save_pretrained(tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    pruned = FTPForCausalLM.from_dense(dense, HALVES, ROUTERS[kind]())
    pruned.save_pretrained(tmp_path / "pruned", include_base=include_base)
    said = json.loads((tmp_path / "pruned" / "config.json").read_text())["schedule"]
    assert said == {"attention": [0.5, 0.3, 0.6], "mlp": [0.3, 0.6, 0.6], "keeps_kv": [1, 0, 0]}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert loaded.schedule == HALVES and loaded.router.kind == pruned.router.kind
    ids = drawn_ids(2, 20)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, pruned(ids).logits)
    assert torch.equal(loaded.generate(ids, max_new_tokens=5), pruned.generate(ids, max_new_tokens=5))
    loaded.save_pretrained(tmp_path / "again", include_base=include_base)
    again = FTPForCausalLM.from_pretrained(tmp_path / "again")
    assert again.schedule == HALVES


def test_schedules_of_both_kinds_take_each_others_place(tmp_path: Path) -> None:
    pruned, ids = FTPForCausalLM.from_dense(fresh_tiny(), PLAIN).eval(), drawn_ids(2, 20)
    plain, halves = (FTPForCausalLM.from_dense(tiny(), one).eval() for one in (PLAIN, HALVES))
    with torch.no_grad():
        for schedule, other in ((HALVES, halves), (PLAIN, plain), (HALVES, halves)):
            pruned.schedule = schedule
            assert pruned.schedule == schedule and pruned.config.schedule == schedule.to_json()
            assert torch.equal(pruned(ids).logits, other(ids).logits)
    # As a study's trial remembers them.
    pruned.schedule = PLAIN
    pruned.schedule = list(HALVES.numbers)
    assert pruned.schedule == HALVES
    pruned.save_pretrained(tmp_path)
    for asked in (PLAIN, list(PLAIN), HALVES, HALVES.to_json()):
        loaded = FTPForCausalLM.from_pretrained(tmp_path, schedule=asked)
        assert loaded.schedule == SparsitySchedule.from_json(asked)


def test_decoded_tokens_are_not_routed_for_halves(tmp_path: Path) -> None:
    message = "decoded tokens are routed for whole blocks alone: set it to 0, or give a schedule with one sparsity"
    with pytest.raises(ModelError, match=f"decode_sparsity is 0.1, but {message}"):
        FTPForCausalLM.from_dense(tiny(), HALVES, decode_sparsity=0.1)
    pruned = FTPForCausalLM.from_dense(fresh_tiny(), HALVES)
    with pytest.raises(ModelError, match=message):
        pruned.decode_sparsity = 0.3
    assert pruned.decode_sparsity == 0
    pruned.schedule = PLAIN
    pruned.decode_sparsity = 0.3
    with pytest.raises(ModelError, match=message):
        pruned.schedule = HALVES
    assert pruned.schedule == PLAIN
    for include_base in (True, False):
        fresh_tiny().save_pretrained(tmp_path / "dense")
        dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
        FTPForCausalLM.from_dense(dense, HALVES).save_pretrained(tmp_path / "pruned", include_base=include_base)
        with pytest.raises(ModelError, match=message):
            FTPForCausalLM.from_pretrained(tmp_path / "pruned", decode_sparsity=0.2)


def test_blocks_with_other_parts_are_refused_before_they_run() -> None:
    with pytest.raises(ModelError, match="gemma4_text models have parts beside attention and MLP"):
        FTPForCausalLM.from_dense(tiny("gemma4_text"), HALVES)
    pruned = FTPForCausalLM.from_dense(tiny("gemma4_text"), PLAIN)
    with pytest.raises(ModelError, match="gemma4_text models have parts beside attention and MLP"):
        pruned.schedule = HALVES


def test_thresholds_of_another_schedule_are_refused() -> None:
    pruned = FTPForCausalLM.from_dense(tiny(), HALVES, thresholds())
    with pytest.raises(ModelError, match="calibrated for the schedule 0.50"):
        pruned.schedule = PLAIN


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"attention": [0.1] * 3, "mlp": [0.1] * 3}, "has the lists attention, mlp, but expected are"),
        ({"attention": [0.1] * 3, "mlp": [0.1] * 3, "keeps_kv": 1}, "expected are attention, mlp and keeps_kv"),
        ({"attention": [0.1] * 3, "mlp": [0.1] * 2, "keeps_kv": [1] * 3}, "3 sparsities for attention, 2 for MLPs"),
        ({"attention": [0.1] * 3, "mlp": 0.1, "keeps_kv": [1] * 3}, "0.1 was given"),
        ({"attention": [0.1, 0.2], "mlp": [0.1] * 2, "keeps_kv": [1] * 2}, "2 sparsities, but the model has 3 blocks"),
    ],
)
def test_a_configuration_whose_halves_make_no_sense_is_an_error_that_names_what(
    tmp_path: Path, schedule: Any, message: str
) -> None:
    FTPForCausalLM.from_dense(fresh_tiny(), HALVES).save_pretrained(tmp_path)
    with pytest.raises(ScheduleError, match=message):
        FTPForCausalLM.from_pretrained(tmp_path, schedule=schedule)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schedule": schedule}))
    with pytest.raises(ScheduleError, match=message):
        FTPForCausalLM.from_pretrained(tmp_path)


def test_the_card_says_what_skips_in_each_half(tmp_path: Path) -> None:
    schedule = SparsitySchedule.of_halves([0.5, 0.3, 0.0], [0.3, 0.6, 0.6], [True, False, False])
    FTPForCausalLM.from_dense(fresh_tiny(), schedule).save_pretrained(tmp_path)
    card = (tmp_path / CARD).read_text()
    assert "skip halves of transformer blocks: 38.3% of them, averaged over its 3 blocks" in card
    rows = [line for line in card.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert rows == ["| 0 | 50% | kept | 30% |", "| 1 | 30% | dropped | 60% |", "| 2 | 0% |  | 60% |"]
