"""A pruned model on disk: it loads as it was, or says what is wrong with its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from ftp_core.causal_lm import FTPForCausalLM
from ftp_core.errors import ModelError
from ftp_core.identity import model_identity, same_model
from ftp_core.routers import DynamicRouter, StaticRouter, register_router
from ftp_core.routers.state import RoutingState
from ftp_core.schedule import SparsitySchedule
from tests.ftp_core.routers import random_router
from tests.ftp_core.test_causal_lm import MIXED, router_of
from tests.ftp_core.tiny_models import CONFIGS, fresh_tiny, tiny


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("include_base", [True, False])
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_saved_model_loads_as_it_was(tmp_path: Path, name: str, include_base: bool, kind: str) -> None:
    model = fresh_tiny(name)
    model.save_pretrained(tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    pruned = FTPForCausalLM.from_dense(dense, MIXED, router_of(kind), decode_sparsity=0.1)
    pruned.save_pretrained(tmp_path / "pruned", include_base=include_base)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert isinstance(loaded, FTPForCausalLM)
    assert loaded.schedule == MIXED and loaded.decode_sparsity == 0.1
    ids = torch.randint(3, 50, (2, 20))
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, pruned(ids).logits)
    assert torch.equal(loaded.generate(ids, max_new_tokens=5), pruned.generate(ids, max_new_tokens=5))
    files = {path.name for path in (tmp_path / "pruned").iterdir()}
    assert files <= {"config.json", "generation_config.json", "model.safetensors"}


def test_another_model_under_the_name_that_was_referred_to_is_noticed(tmp_path: Path) -> None:
    fresh_tiny().save_pretrained(tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    FTPForCausalLM.from_dense(dense, MIXED).save_pretrained(tmp_path / "pruned", include_base=False)
    other = fresh_tiny()
    other.lm_head.weight.data.mul_(2)
    other.save_pretrained(tmp_path / "dense")
    with pytest.raises(ModelError, match="not the one that was pruned"):
        FTPForCausalLM.from_pretrained(tmp_path / "pruned")


def saved(folder: Path, router: object = None, include_base: bool = True, **options: object) -> FTPForCausalLM:
    """A pruned model, saved below a folder beside its dense one."""
    fresh_tiny().save_pretrained(folder / "dense")
    dense = AutoModelForCausalLM.from_pretrained(folder / "dense", dtype=torch.float32)
    pruned = FTPForCausalLM.from_dense(dense, MIXED, random_router(1, window=3) if router is None else router)
    pruned.save_pretrained(folder / "pruned", include_base=include_base, **options)
    return pruned


@pytest.mark.parametrize("include_base", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_router_stays_in_full_precision_whatever_the_model_is_in(
    tmp_path: Path, dtype: torch.dtype, include_base: bool
) -> None:
    ids = torch.randint(3, 50, (2, 20))
    fresh_tiny().to(dtype).save_pretrained(tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=dtype)
    half = FTPForCausalLM.from_dense(dense, MIXED, random_router(1, window=3))
    half.save_pretrained(tmp_path / "half", include_base=include_base)
    with torch.no_grad():
        for loaded in (
            AutoModelForCausalLM.from_pretrained(tmp_path / "half"),
            FTPForCausalLM.from_pretrained(tmp_path / "half", dtype=dtype),
        ):
            assert loaded.dtype == dtype
            assert {parameter.dtype for parameter in loaded.router.parameters()} == {torch.float32}
            assert torch.equal(loaded(ids).logits, half(ids).logits)
        # Converted as a whole, which rounds rotary tables, too.
        converted = FTPForCausalLM.from_dense(fresh_tiny(), MIXED, random_router(1, window=3)).to(dtype)
        assert {parameter.dtype for parameter in converted.router.parameters()} == {torch.float32}
        again = FTPForCausalLM.from_dense(fresh_tiny().to(dtype), MIXED, random_router(1, window=3))
        assert torch.equal(converted(ids).logits, again(ids).logits)


def test_the_precision_that_was_saved_is_loaded_wherever_the_weights_lie(tmp_path: Path) -> None:
    fresh_tiny().to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    pruned = FTPForCausalLM.from_dense(dense, MIXED)
    for include_base in (True, False):
        pruned.save_pretrained(tmp_path / "pruned", include_base=include_base)
        assert FTPForCausalLM.from_pretrained(tmp_path / "pruned").dtype == torch.float32
        assert FTPForCausalLM.from_pretrained(tmp_path / "pruned", dtype="auto").dtype == torch.float32
        assert FTPForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("include_base", [True, False])
def test_another_schedule_may_be_asked_for_when_loading(tmp_path: Path, include_base: bool) -> None:
    saved(tmp_path, include_base=include_base)
    loaded, info = FTPForCausalLM.from_pretrained(
        tmp_path / "pruned", schedule=[0.1, 0.2, 0.3], decode_sparsity=0.2, output_loading_info=True
    )
    assert loaded.schedule == SparsitySchedule([0.1, 0.2, 0.3]) and loaded.decode_sparsity == 0.2
    assert not info["missing_keys"]


def test_thresholds_for_another_schedule_are_noticed_when_loading(tmp_path: Path) -> None:
    router = random_router(1, window=3)
    router.set_thresholds([0.0, 0.0, 0.0], MIXED)
    saved(tmp_path, router)
    with pytest.raises(ModelError, match="calibrated for the schedule"):
        FTPForCausalLM.from_pretrained(tmp_path / "pruned", schedule=[0.1, 0.2, 0.3])


@pytest.mark.parametrize("include_base", [True, False])
def test_a_file_without_its_routers_weights_is_refused(tmp_path: Path, include_base: bool) -> None:
    saved(tmp_path, include_base=include_base)
    path = tmp_path / "pruned" / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("router.")}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="has no weights of its dynamic router"):
        FTPForCausalLM.from_pretrained(tmp_path / "pruned")


@pytest.mark.parametrize("content", [None, b"", b"not weights", "half", "another router"])
def test_a_damaged_router_file_is_refused(tmp_path: Path, content: object) -> None:
    saved(tmp_path, include_base=False)
    path = tmp_path / "pruned" / "model.safetensors"
    if content is None:
        path.unlink()
    elif content == "half":
        path.write_bytes(path.read_bytes()[:400])
    elif content == "another router":
        state = DynamicRouter(features=("position",)).state_dict()
        save_file({f"router.{name}": tensor for name, tensor in state.items()}, path)
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    with pytest.raises(ModelError, match="has no weights of its dynamic router"):
        FTPForCausalLM.from_pretrained(tmp_path / "pruned")


def test_weights_of_another_model_in_the_file_are_noticed(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "pruned" / "model.safetensors"
    weights = load_file(path)
    weights["base.lm_head.weight"] *= 2
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not the one that was pruned"):
        FTPForCausalLM.from_pretrained(tmp_path / "pruned")


def test_a_model_that_is_not_pruned_is_refused_by_name(tmp_path: Path) -> None:
    fresh_tiny().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="holds a 'llama' model, not a pruned one"):
        FTPForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_an_identity_is_of_the_model_and_not_of_its_precision(name: str) -> None:
    published = fresh_tiny(name).to(torch.bfloat16)
    identity = model_identity(published)
    assert model_identity(published.float()) == identity
    other = fresh_tiny(name).to(torch.float16)
    assert same_model(model_identity(other), identity, torch.float16)
    changed = fresh_tiny(name).to(torch.bfloat16)
    changed.get_output_embeddings().weight.data.mul_(2)
    assert not same_model(model_identity(changed), identity, torch.bfloat16)
    assert not same_model(model_identity(tiny("llama" if name != "llama" else "qwen3")), identity, torch.float16)


class EveryOther:
    """A router of a third party: it keeps the highest of its own scores."""

    kind = "every-other"
    window = 0
    reads_hidden = False
    keeps_budget = False
    routes_decoding = False

    def __init__(self, offset: int = 0) -> None:
        self.options = {"offset": offset}

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        return ((state.positions + self.options["offset"]) % 2 == 0) & state.real | (state.positions == 0) & state.real


def test_routers_of_third_parties_run_and_once_registered_are_saved(tmp_path: Path) -> None:
    ids = torch.randint(3, 50, (2, 20))
    pruned = FTPForCausalLM.from_dense(fresh_tiny(), MIXED, EveryOther(1))
    with torch.no_grad():
        expected = pruned(ids).logits
    assert pruned(ids, use_cache=True).past_key_values.held() == (11, 20, 11)
    pruned.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="There is no router 'every-other'.*register_router"):
        FTPForCausalLM.from_pretrained(tmp_path)
    register_router(EveryOther)
    with torch.no_grad():
        assert torch.equal(FTPForCausalLM.from_pretrained(tmp_path)(ids).logits, expected)

    class Impostor(StaticRouter):
        pass

    with pytest.raises(ModelError, match="another router 'static' already"):
        register_router(Impostor)


def test_nothing_but_safetensors_and_json_is_written(tmp_path: Path) -> None:
    saved(tmp_path, max_shard_size="20KB")
    names = {path.name for path in (tmp_path / "pruned").iterdir()}
    assert all(name.endswith((".safetensors", ".json")) for name in names)
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())["model_type"] == "ftp"
    assert FTPForCausalLM.from_pretrained(tmp_path / "pruned").schedule == MIXED
