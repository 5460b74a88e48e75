"""Whatever is accepted for saving loads as it was, also after training; what would not, or destroys, is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from optimum.quanto import freeze, qint8, quantize
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, QuantoConfig, Trainer, TrainingArguments

from ftp_core.errors import ModelError
from ftp_core.loading.identity import model_identity
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.routers import DynamicRouter, HiddenRouter, OnePassRouter, Router
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.model.test_causal_lm import MIXED
from tests.ftp_core.tiny_models import CONFIGS, VOCABULARY, crossed, fresh_tiny, in_turns

IDS = torch.randint(3, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(5))


def dense_at(folder: Path, name: str = "llama", **options: Any) -> PreTrainedModel:
    """A dense model that lies in a folder."""
    if not folder.exists():
        fresh_tiny(name).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def pruned_of(dense: PreTrainedModel) -> FTPForCausalLM:
    """A pruned model whose router was trained for the dense one."""
    router = random_router(1, window=3)
    router.trained_for = model_identity(dense)
    return FTPForCausalLM.from_dense(dense, MIXED, router)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


def train_a_step(model: nn.Module) -> None:
    """Every weight moves, those of tied embeddings together."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(IDS, labels=IDS).loss.backward()
    optimizer.step()


def resize(model: FTPForCausalLM) -> None:
    model.resize_token_embeddings(VOCABULARY + 7)


def set_pad_token(model: FTPForCausalLM) -> None:
    model.base.config.pad_token_id = 2


def untie(model: FTPForCausalLM) -> None:
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach() * 1.5)


def tie_by_hand(model: FTPForCausalLM) -> None:
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    model.get_input_embeddings().weight.data.mul_(1.1)


CHANGES = (train_a_step, resize, set_pad_token, untie, tie_by_hand)


@pytest.mark.parametrize(("name", "change"), crossed(CONFIGS, CHANGES, ["llama"]))
def test_a_model_that_changed_since_it_was_pruned_is_saved_as_it_is(
    tmp_path: Path, name: str, change: Callable[[FTPForCausalLM], None]
) -> None:
    model = pruned_of(dense_at(tmp_path / "dense", name))
    before = files(tmp_path / "dense")
    change(model)
    model.save_pretrained(tmp_path / "pruned")
    loaded = FTPForCausalLM.from_pretrained(tmp_path / "pruned")
    assert torch.equal(logits(loaded), logits(model))
    for one in (model, loaded):
        with pytest.raises(ModelError, match="changed since it was loaded, which would be lost: save the dense model"):
            one.save_pretrained(tmp_path / "light", include_base=False)
    assert not (tmp_path / "light").exists() and files(tmp_path / "dense") == before
    # Once more, over itself: what was loaded may be read from the very file that is written.
    loaded.save_pretrained(tmp_path / "pruned")
    assert torch.equal(logits(FTPForCausalLM.from_pretrained(tmp_path / "pruned")), logits(model))


@pytest.mark.parametrize(
    ("name", "dtype"),
    in_turns(["llama", "gemma2", "gpt2"], [torch.float32, torch.bfloat16, torch.float16, torch.float64], ["llama"]),
)
def test_a_model_that_was_trained_in_any_precision_loads_in_every_other(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    model = pruned_of(dense_at(tmp_path / "dense", name)).to(dtype)
    train_a_step(model)
    model.save_pretrained(tmp_path / "pruned")
    weights = model.base.state_dict()
    for other in ("auto", torch.float32, torch.bfloat16, torch.float16):
        loaded = FTPForCausalLM.from_pretrained(tmp_path / "pruned", dtype=other)
        expected = dtype if other == "auto" else other
        for key, tensor in loaded.base.state_dict().items():
            assert torch.equal(tensor, weights[key].to(expected))


def test_a_change_in_half_precision_is_noticed_where_weights_are_left_out(tmp_path: Path) -> None:
    model = pruned_of(dense_at(tmp_path / "dense", dtype=torch.float16))
    model.save_pretrained(tmp_path / "light", include_base=False)
    assert torch.equal(logits(FTPForCausalLM.from_pretrained(tmp_path / "light")), logits(model))
    model.base.lm_head.weight.data.mul_(1.5)
    with pytest.raises(ModelError, match="which would be lost"):
        model.save_pretrained(tmp_path / "light", include_base=False)


def test_a_change_between_loading_and_pruning_is_noticed_too(tmp_path: Path) -> None:
    dense = dense_at(tmp_path / "dense")
    dense.lm_head.weight.data.mul_(1.5)
    with pytest.raises(ModelError, match="which would be lost"):
        FTPForCausalLM.from_dense(dense, MIXED).save_pretrained(tmp_path / "light", include_base=False)
    # What is no name of a model anywhere cannot be referred to.
    os.rename(tmp_path / "dense", tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="Cannot find the model"):
        FTPForCausalLM.from_dense(dense, MIXED).save_pretrained(tmp_path / "light", include_base=False)
    assert not (tmp_path / "light").exists()


def test_checkpoints_of_a_trainer_load_and_training_goes_on_from_them(tmp_path: Path) -> None:
    data = [{"input_ids": row, "labels": row} for row in torch.randint(3, VOCABULARY, (8, 12))]
    options = {
        "per_device_train_batch_size": 4,
        "save_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }

    def trainer(steps: int) -> Trainer:
        arguments = TrainingArguments(str(tmp_path / "runs"), max_steps=steps, **options)
        return Trainer(pruned_of(dense_at(tmp_path / "dense", "gemma")), arguments, train_dataset=data)

    first = trainer(2)
    first.train()
    loaded = FTPForCausalLM.from_pretrained(tmp_path / "runs/checkpoint-2")
    assert torch.equal(logits(loaded), logits(first.model))
    assert not torch.equal(logits(loaded), logits(FTPForCausalLM.from_pretrained(tmp_path / "runs/checkpoint-1")))
    second = trainer(3)
    second.train(resume_from_checkpoint=str(tmp_path / "runs/checkpoint-2"))
    second.save_model(str(tmp_path / "trained"))
    assert torch.equal(logits(FTPForCausalLM.from_pretrained(tmp_path / "trained")), logits(second.model))


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_weights_that_are_given_are_those_that_are_saved(tmp_path: Path, name: str) -> None:
    model, trained = pruned_of(dense_at(tmp_path / "dense", name)), pruned_of(dense_at(tmp_path / "dense", name))
    train_a_step(trained)
    given = trained.state_dict()
    model.save_pretrained(tmp_path / "pruned", state_dict=given)
    assert torch.equal(logits(FTPForCausalLM.from_pretrained(tmp_path / "pruned")), logits(trained))
    if name == "gemma":
        # A second name of the embeddings.
        del given["base.lm_head.weight"]
        model.save_pretrained(tmp_path / "pruned", state_dict=given)
        assert torch.equal(logits(FTPForCausalLM.from_pretrained(tmp_path / "pruned")), logits(trained))
    for key, changed, message in (
        (
            "base.model.norm.weight",
            None,
            "has none for the weight base.model.norm.weight, .* asks for one of the shape",
        ),
        ("router.mlp.0.weight", None, "has none for the weight router.mlp.0.weight"),
        (
            "base.model.norm.weight",
            torch.ones(7),
            r"one of the shape \(7,\) for the weight base.model.norm.weight, but",
        ),
        ("base.other", torch.ones(1), r"one of the shape \(1,\) for the weight base.other, .* asks for none"),
        ("base.model.norm.weight", torch.full((32,), torch.nan), "base.model.norm.weight of the model is not finite"),
    ):
        unfit = {one: tensor for one, tensor in (given | {key: changed}).items() if tensor is not None}
        with pytest.raises(ModelError, match=message):
            model.save_pretrained(tmp_path / "unfit", state_dict=unfit)
    assert not (tmp_path / "unfit").exists()


def test_a_router_for_trained_weights_is_taken_and_one_for_the_former_ones_refused(tmp_path: Path) -> None:
    model = pruned_of(dense_at(tmp_path / "dense"))
    former, new = model.router, DynamicRouter(window=3)
    train_a_step(model)
    new.trained_for = model_identity(model.base)
    model.save_pretrained(tmp_path / "pruned")
    for one in (model, FTPForCausalLM.from_pretrained(tmp_path / "pruned")):
        with pytest.raises(ModelError, match="trained for another model"):
            one.set_router(former)
        one.set_router(new)


@pytest.mark.parametrize("include_base", [True, False])
@pytest.mark.parametrize("router", [random_router(1, window=3), HiddenRouter(32), OnePassRouter(32, 3)])
def test_shards_and_variants_load_also_over_an_earlier_save(tmp_path: Path, include_base: bool, router: Router) -> None:
    model = FTPForCausalLM.from_dense(dense_at(tmp_path / "dense"), MIXED, router)
    expected = logits(model)
    model.save_pretrained(tmp_path / "pruned")
    for options in ({"max_shard_size": "8KB"}, {}, {"variant": "small", "max_shard_size": "8KB"}, {"variant": "small"}):
        with torch.no_grad():
            model.router.requires_grad_(False)
            for weight in model.router.parameters():
                weight.mul_(1.1)
        expected = logits(model)
        model.save_pretrained(tmp_path / "pruned", include_base=include_base, **options)
        variant = options.get("variant")
        loaded = FTPForCausalLM.from_pretrained(tmp_path / "pruned", variant=variant)
        assert torch.equal(logits(loaded), expected)
        names = [
            path.name for path in (tmp_path / "pruned").iterdir() if ("small" in path.name) == (variant is not None)
        ]
        sharded = include_base and "max_shard_size" in options
        assert (len([name for name in names if name.endswith(".safetensors")]) > 1) == sharded
        assert any("index" in name for name in names) == sharded


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_merged_adapters_are_saved_whenever_they_were_merged(tmp_path: Path, name: str) -> None:
    before = FTPForCausalLM.from_dense(
        get_peft_model(dense_at(tmp_path / "dense", name), lora()).merge_and_unload(), MIXED
    )
    after = get_peft_model(pruned_of(dense_at(tmp_path / "dense", name)), lora()).merge_and_unload()
    for model in (before, after):
        model.save_pretrained(tmp_path / "pruned")
        assert torch.equal(logits(FTPForCausalLM.from_pretrained(tmp_path / "pruned")), logits(model))


def test_adapters_alone_are_saved_and_loaded_as_those_of_a_dense_model(tmp_path: Path) -> None:
    pruned_of(dense_at(tmp_path / "dense")).save_pretrained(tmp_path / "pruned")
    adapted = get_peft_model(FTPForCausalLM.from_pretrained(tmp_path / "pruned"), lora())
    adapted.save_pretrained(tmp_path / "of-peft")
    again = PeftModel.from_pretrained(FTPForCausalLM.from_pretrained(tmp_path / "pruned"), tmp_path / "of-peft")
    assert torch.equal(logits(again), logits(adapted))

    added = FTPForCausalLM.from_pretrained(tmp_path / "pruned")
    added.add_adapter(lora())
    for _ in range(2):
        added.save_pretrained(tmp_path / "alone")
    loaded = FTPForCausalLM.from_pretrained(tmp_path / "pruned")
    loaded.load_adapter(str(tmp_path / "alone"))
    assert torch.equal(logits(loaded), logits(added))
    with pytest.raises(ModelError, match="holds adapters alone: load the pruned model, then load_adapter"):
        FTPForCausalLM.from_pretrained(tmp_path / "alone")
    # transformers loads adapters that lie beside a model.
    added.save_pretrained(tmp_path / "pruned")
    assert torch.equal(logits(FTPForCausalLM.from_pretrained(tmp_path / "pruned")), logits(added))


def test_adapters_that_are_not_merged_run_but_are_not_saved_with_the_model(tmp_path: Path) -> None:
    around = pruned_of(dense_at(tmp_path / "dense"))
    get_peft_model(around, lora())
    below = dense_at(tmp_path / "dense")
    below.add_adapter(lora())
    zeros = FTPForCausalLM.from_dense(below, [0.0] * 3)
    assert torch.equal(logits(zeros), logits(below))
    for model in (around, zeros):
        for include_base in (True, False):
            with pytest.raises(ModelError, match=r"adapters that are not merged .*merge_and_unload\(\)"):
                model.save_pretrained(tmp_path / "pruned", include_base=include_base)
    assert not (tmp_path / "pruned").exists()
    with pytest.raises(ModelError, match=r"A PeftModel is no dense model: .*merge_and_unload\(\)"):
        FTPForCausalLM.from_dense(get_peft_model(dense_at(tmp_path / "dense"), lora()), MIXED)


@pytest.mark.parametrize("include_base", [True, False])
def test_a_model_that_is_quantised_while_loading_is_the_quantised_dense_model_pruned(
    tmp_path: Path, include_base: bool
) -> None:
    model = pruned_of(dense_at(tmp_path / "dense"))
    model.save_pretrained(tmp_path / "pruned", include_base=include_base)
    quantised = dense_at(tmp_path / "dense", quantization_config=QuantoConfig(weights="int8"))
    expected = FTPForCausalLM.from_dense(quantised, MIXED, model.router)
    loaded = FTPForCausalLM.from_pretrained(tmp_path / "pruned", quantization_config=QuantoConfig(weights="int8"))
    assert type(loaded.base.model.layers[0].mlp.up_proj.weight) is not nn.Parameter
    assert {type(weight) for weight in loaded.router.parameters()} == {nn.Parameter}
    assert torch.equal(logits(loaded), logits(expected)) and not torch.equal(logits(loaded), logits(model))
    loaded.schedule = [0.0] * 3
    assert torch.equal(logits(loaded), logits(quantised))


def test_quantised_weights_run_but_are_not_saved(tmp_path: Path) -> None:
    while_loading = dense_at(tmp_path / "dense", quantization_config=QuantoConfig(weights="int8"))
    before, after = dense_at(tmp_path / "dense"), pruned_of(dense_at(tmp_path / "dense"))
    for model in (before, after.base):
        quantize(model, weights=qint8)
        freeze(model)
    for model in (*(FTPForCausalLM.from_dense(one, MIXED) for one in (while_loading, before)), after):
        assert torch.isfinite(logits(model)).all()
        for include_base in (True, False):
            with pytest.raises(ModelError, match="are quantised .*quantise it while it is loaded"):
                model.save_pretrained(tmp_path / "pruned", include_base=include_base)
    assert not (tmp_path / "pruned").exists()


def spellings(folder: Path, dense: Path) -> list[Path]:
    """Ways to name a dense model's directory."""
    (folder / "link").symlink_to(dense, target_is_directory=True)
    (folder / "parent").symlink_to(dense.parent, target_is_directory=True)
    (folder / "deeper").mkdir()
    return [
        dense,
        Path(os.path.relpath(dense)),
        folder / "link",
        folder / "parent" / dense.name,
        folder / "deeper" / ".." / "link",
        Path(f"{dense}//"),
    ]


@pytest.mark.parametrize("include_base", [True, False])
def test_no_model_that_is_not_pruned_is_overwritten(tmp_path: Path, include_base: bool) -> None:
    dense = tmp_path / "models" / "dense"
    model = pruned_of(dense_at(dense))
    fresh_tiny("qwen3").save_pretrained(tmp_path / "other")
    # As the Hub's cache keeps models.
    snapshot = tmp_path / "models--some--llama" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in dense.iterdir():
        (snapshot / path.name).symlink_to(path)
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model-00001-of-00002.safetensors").symlink_to(dense / "model.safetensors")
    unreadable = tmp_path / "unreadable"
    unreadable.mkdir()
    (unreadable / "config.json").write_text('{"model_type": "ll')
    before = files(tmp_path)
    for place in (*spellings(tmp_path, dense), tmp_path / "other", snapshot, weights, unreadable):
        with pytest.raises(ModelError, match="would be overwritten: name another directory"):
            model.save_pretrained(place, include_base=include_base)
        model_of_place = FTPForCausalLM.from_dense(dense_at(dense), MIXED)
        with pytest.raises(ModelError, match="would be overwritten: name another directory"):
            model_of_place.save_pretrained(str(place), include_base=include_base)
    with pytest.raises(ModelError, match="is a file: name another directory"):
        model.save_pretrained(dense / "config.json", include_base=include_base)
    assert {name: content for name, content in files(tmp_path).items() if name in before} == before
    assert not list(tmp_path.rglob(".partial-*"))


def test_a_model_inside_the_directory_of_its_dense_one_harms_neither(tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    model = pruned_of(dense_at(dense))
    before = files(dense)
    model.save_pretrained(dense / "pruned", include_base=False)
    assert {name: content for name, content in files(dense).items() if not name.startswith("pruned")} == before
    assert torch.equal(logits(FTPForCausalLM.from_pretrained(dense / "pruned")), logits(model))


def test_links_in_a_pruned_models_directory_are_replaced_and_not_written_through(tmp_path: Path) -> None:
    model = pruned_of(dense_at(tmp_path / "dense"))
    model.save_pretrained(tmp_path / "blobs")
    before = files(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        if path.suffix == ".json":
            (tmp_path / "snapshot" / path.name).symlink_to(path)
        else:
            os.link(path, tmp_path / "snapshot" / path.name)
    train_a_step(model)
    model.save_pretrained(tmp_path / "snapshot")
    assert files(tmp_path / "blobs") == before
    assert torch.equal(logits(FTPForCausalLM.from_pretrained(tmp_path / "snapshot")), logits(model))


def test_a_save_that_fails_leaves_the_model_that_was_there(tmp_path: Path) -> None:
    model = pruned_of(dense_at(tmp_path / "dense"))
    model.save_pretrained(tmp_path / "pruned")
    before = files(tmp_path / "pruned")
    train_a_step(model)
    with pytest.raises(ValueError, match="distributed_checkpoint=True"):
        model.save_pretrained(tmp_path / "pruned", distributed_checkpoint=True)
    assert files(tmp_path / "pruned") == before and not list((tmp_path / "pruned").glob(".partial-*"))
    assert model.config.base_model is None


def test_the_configuration_says_which_weights_are_in_the_file(tmp_path: Path) -> None:
    model = pruned_of(dense_at(tmp_path / "dense"))
    train_a_step(model)
    model.save_pretrained(tmp_path / "pruned")
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert config["base_identity"] == model_identity(model.base) and config["base_model"] is None
    weights = load_file(tmp_path / "pruned" / "model.safetensors")
    assert torch.equal(weights["base.lm_head.weight"], model.base.lm_head.weight)
