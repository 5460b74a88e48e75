"""Models that accelerate has spread over devices, or offloaded, compute what they compute on one device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ftp_core.baselines.shortgpt import block_influence
from ftp_core.cost.conditions import ProfileError
from ftp_core.cost.stopwatch import TimedPasses
from ftp_core.errors import ModelError
from ftp_core.loading.identity import is_comparable, model_identity
from ftp_core.loading.models import load_model
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import (
    DynamicRouter,
    HiddenRouter,
    OnePassRouter,
    RecurrentRouter,
    Router,
    StaticRouter,
    router_to_bytes,
)
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.dispatch import is_spread
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, prompt_batch
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.tiny_models import fresh_tiny

MIXED = SparsitySchedule([0.0, 0.4, 0.6])
EXAMPLES = [
    EncodedExample(tuple(range(2 + i, 12 + 2 * i)), ((5, 6), (7,), (8 + i, 9, 10), (11 + i,)), i % 4, True)
    for i in range(6)
]
# One block in memory, the others and the head on the disk.
PARTS: dict[str, dict[str, Any]] = {
    "llama": {
        **dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "model.layers.0"), "cpu"),
        **dict.fromkeys(("model.layers.1", "model.layers.2", "lm_head"), "disk"),
    },
    "gpt2": {
        **dict.fromkeys(("transformer.wte", "transformer.wpe", "transformer.ln_f", "transformer.h.0"), "cpu"),
        **dict.fromkeys(("transformer.h.1", "transformer.h.2"), "disk"),
        "lm_head": "cpu",
    },
}


@pytest.fixture(params=sorted(PARTS))
def models(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same model twice: in memory, and with two of its blocks on the disk."""
    whole = fresh_tiny(request.param)
    whole.save_pretrained(tmp_path / "model")
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=PARTS[request.param], offload_folder=str(tmp_path / "offloaded")
    )
    assert is_spread(spread) and any(weight.is_meta for weight in spread.parameters())
    return whole, spread


def test_everything_is_computed_alike(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    whole, spread = (SkippingModel(model) for model in models)
    assert spread.device == torch.device("cpu")
    sets = [QualitySet(model, EXAMPLES, batch_size=4) for model in (whole, spread)]
    reading: list[Router] = [HiddenRouter(32), OnePassRouter(32, 3)]
    for router in [StaticRouter(), random_router(1, window=3), *reading, RecurrentRouter(window=3)]:
        expected, found = (quality.evaluate(MIXED, router, choices=True) for quality in sets)
        assert found == expected
    sets[0].check_model(spread)
    assert model_identity(models[1]) == model_identity(models[0]) and is_comparable(models[1])
    assert block_influence(spread, prompt_batch(EXAMPLES)) == block_influence(whole, prompt_batch(EXAMPLES))


def test_generating_is_alike_where_decoded_tokens_skip_too(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    ids, new = torch.tensor([range(3, 23), range(13, 33)]), []
    for model in models:
        pruned = FTPForCausalLM.from_dense(model, MIXED, random_router(1, window=3), decode_sparsity=0.5)
        assert pruned.device == torch.device("cpu")
        mask = torch.ones_like(ids)
        new.append(pruned.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False))
    assert torch.equal(*new)


@pytest.mark.parametrize(
    "router", [DynamicRouter(window=3), HiddenRouter(32), OnePassRouter(32, 3)], ids=lambda router: router.kind
)
def test_routers_learn_alike(models: tuple[PreTrainedModel, PreTrainedModel], router: Any) -> None:
    config = DistillationConfig(steps=2, batch_size=4, evaluate_every=1, consider_static=False)
    found = [
        distill(SkippingModel(model), EXAMPLES, MIXED, config, router=router, held_out=EXAMPLES[:2]) for model in models
    ]
    assert found[0].curves["distill"] == found[1].curves["distill"]
    assert router_to_bytes(found[0].router) == router_to_bytes(found[1].router)


def test_a_map_loads_the_same_model_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    plain = load_model("demo")
    mapped = load_model("demo", device_map="auto", dtype="bfloat16")
    assert mapped.skipping.model.dtype == torch.bfloat16
    blocks = {f"model.layers.{index}": "disk" for index in range(plain.skipping.n_blocks)}
    others = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    spread = load_model("demo", device_map=blocks | others)
    assert is_spread(spread.skipping.model) and spread.fingerprint() == plain.fingerprint()
    assert "parts of the model on cpu, disk" in spread.placement


def test_blocks_on_several_devices_have_no_common_clock(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    model = SkippingModel(models[1])
    TimedPasses(model, 1, 8)
    model.blocks[1]._hf_hook.execution_device = "meta"
    with pytest.raises(ProfileError, match="on several devices.*--cost flops"):
        TimedPasses(model, 1, 8)


def test_maps_that_cannot_be_followed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="Cannot load the model 'demo'"):
        load_model("demo", device_map="everywhere")
    monkeypatch.setattr("ftp_core.loading.models.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"accelerate: install ftp-search\[device-map\]"):
        load_model("demo", device_map="auto")


def test_parts_on_several_devices_get_what_they_need_there() -> None:
    """On devices that only pretend to compute, but refuse operands from different ones (see the module)."""
    script = Path(__file__).parents[1] / "skipping" / "pretend_devices.py"
    done = subprocess.run([sys.executable, str(script), "spread"], capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
