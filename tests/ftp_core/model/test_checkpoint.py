"""A pruned model on disk: it loads as it was, or says what is wrong with its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from ftp_core.errors import ModelError, ScheduleError
from ftp_core.loading.identity import model_identity, same_model
from ftp_core.model import modeling_ftp
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.routers import DynamicRouter, StaticRouter, register_router
from ftp_core.routers.state import RoutingState
from ftp_core.schedule import SparsitySchedule
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.model.test_causal_lm import MIXED, router_of
from tests.ftp_core.tiny_models import CONFIGS, each, fresh_tiny, tiny


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
    assert files <= {"config.json", "generation_config.json", "model.safetensors", "README.md", "modeling_ftp.py"}


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


@pytest.mark.parametrize("content", [None, b"", b"not weights", "half"])
def test_a_damaged_file_of_weights_is_an_error_that_names_it(tmp_path: Path, content: object) -> None:
    saved(tmp_path)
    path = tmp_path / "pruned" / "model.safetensors"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:5000] if content == "half" else content)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=f"The weights of {path.parent} cannot be loaded .*: restore its files"):
        FTPForCausalLM.from_pretrained(path.parent)


def rewrite(path: Path, **changed: Tensor | None) -> None:
    """Change tensors of a safetensors file; None takes one out."""
    weights: dict[str, Any] = load_file(path) | changed
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, path, metadata={"format": "pt"})


def test_weights_that_do_not_make_the_model_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    path, one, head = (
        tmp_path / "pruned" / "model.safetensors",
        "base.model.layers.1.mlp.up_proj.weight",
        "base.lm_head",
    )
    before = path.read_bytes()
    not_finite = load_file(path)[f"{head}.weight"].index_fill(0, torch.tensor(7), float("nan"))
    for changed, message in (
        ({one: None}, f"1 weights are missing, the first is {one}"),
        ({one: torch.zeros(2, 3)}, rf"weight {one} is of the shape \(2, 3\), but its config.json asks for \(48, 32\)"),
        ({f"{head}.weight": not_finite}, "lm_head.weight of the model is not finite"),
        ({"router.mlp.0.weight": torch.zeros(64, 1)}, r"no weights of its dynamic router, .*router.mlp.0.weight"),
        ({"router.other": torch.zeros(1)}, r"no weights of its dynamic router, or other ones .router.other."),
    ):
        rewrite(path, **changed)
        with pytest.raises(ModelError, match=message):
            FTPForCausalLM.from_pretrained(path.parent)
        path.write_bytes(before)
    rewrite(tmp_path / "dense" / "model.safetensors", **{"lm_head.weight": not_finite})
    FTPForCausalLM.from_pretrained(path.parent)


@pytest.mark.parametrize("load", [FTPForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_a_dense_model_that_moved_is_an_error_and_may_be_said_anew(tmp_path: Path, load: Any) -> None:
    pruned, ids = saved(tmp_path, include_base=False), torch.randint(3, 50, (2, 20))
    shutil.move(tmp_path / "dense", tmp_path / "elsewhere")
    with pytest.raises(
        ModelError,
        match=f"The dense model '{tmp_path / 'dense'}', to which {tmp_path / 'pruned'} refers, cannot be loaded .there "
        r"is no directory .*say where it is with from_pretrained\(\.\.\., base_model=\.\.\.\)",
    ):
        load(tmp_path / "pruned")
    loaded = load(tmp_path / "pruned", base_model=str(tmp_path / "elsewhere"))
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, pruned(ids).logits)
    fresh_tiny("qwen3").save_pretrained(tmp_path / "dense")
    with pytest.raises(
        ModelError, match=f"The dense model at '{tmp_path / 'dense'}' .* is not the one that was pruned"
    ):
        load(tmp_path / "pruned")


def test_a_dense_model_that_cannot_be_read_is_an_error_that_names_both(tmp_path: Path) -> None:
    saved(tmp_path, include_base=False)
    dense, pruned = tmp_path / "dense", tmp_path / "pruned"
    weights = dense / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refers = f"The dense model '{dense}', to which {pruned} refers,"
    with pytest.raises(ModelError, match=f"{refers} cannot be loaded .*deserializing"):
        FTPForCausalLM.from_pretrained(pruned)
    weights.unlink()
    with pytest.raises(ModelError, match=f"{refers} cannot be loaded .*no file named model.safetensors"):
        FTPForCausalLM.from_pretrained(pruned)
    (dense / "config.json").unlink()
    with pytest.raises(ModelError, match=f"{refers} cannot be loaded .*has no config.json"):
        FTPForCausalLM.from_pretrained(pruned)
    shutil.copytree(pruned, dense, dirs_exist_ok=True)
    with pytest.raises(ModelError, match=f"{refers} is a pruned model itself"):
        FTPForCausalLM.from_pretrained(pruned)
    fresh_tiny().save_pretrained(dense)
    nothing = load_file(weights)["lm_head.weight"].fill_(float("nan"))
    rewrite(weights, **{"lm_head.weight": nothing})
    with pytest.raises(ModelError, match="lm_head.weight of the model is not finite"):
        FTPForCausalLM.from_pretrained(pruned)
    rewrite(weights, **{"lm_head.weight": None})
    with pytest.raises(
        ModelError, match=f"The dense model '{dense}': 1 weights are missing, the first is lm_head.weight"
    ):
        FTPForCausalLM.from_pretrained(pruned)


def test_a_dense_model_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh_tiny().save_pretrained(tmp_path / "dense")
    monkeypatch.chdir(tmp_path)
    dense = AutoModelForCausalLM.from_pretrained("dense")
    FTPForCausalLM.from_dense(dense, MIXED).save_pretrained("pruned", include_base=False)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert FTPForCausalLM.from_pretrained("../pruned").schedule == MIXED


@pytest.mark.parametrize("include_base", [True, False])
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"schedule": [0.1, 0.1]}, ScheduleError, "2 sparsities, but the model has 3 blocks"),
        ({"schedule": [0.1, 2, 0.1]}, ScheduleError, "PRUNED has no schedule that fits: Sparsity 2.0 of block 1"),
        ({"schedule": ["a", 0.1, 0.1]}, ScheduleError, "PRUNED has no schedule that fits: Sparsity 'a' of block 0"),
        ({"schedule": "0.1"}, ScheduleError, "PRUNED has no schedule that fits: .*'0.1' was given"),
        ({"schedule": None}, ScheduleError, "PRUNED has no schedule that fits: .*None was given"),
        ({"decode_sparsity": "half"}, ScheduleError, "decode_sparsity is 'half', but must be a number"),
        ({"router": {"kind": "foo"}}, ModelError, "There is no router 'foo': choose of static"),
        ({"router": "static"}, ModelError, "PRUNED has the router 'static', not a description"),
        ({"base_config": {}}, ModelError, "PRUNED does not say what its dense model is"),
        ({"base_config": {"model_type": "foo"}}, ModelError, "The configuration of PRUNED cannot be loaded .*foo"),
        ({"base_identity": "foo"}, ModelError, "is not the one that was pruned .foo."),
    ],
)
def test_a_configuration_that_makes_no_sense_is_an_error_that_names_what(
    tmp_path: Path, include_base: bool, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    saved(tmp_path, include_base=include_base)
    path = tmp_path / "pruned" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(error, match=message.replace("PRUNED", str(path.parent))):
        FTPForCausalLM.from_pretrained(path.parent)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [("0.1", "'0.1' was given"), (0.3, "0.3 was given"), (["a"] * 3, "'a' of block 0"), ([0.1], "1 sparsities, but")],
)
def test_a_schedule_that_does_not_fit_is_refused_when_loading(tmp_path: Path, schedule: Any, message: str) -> None:
    saved(tmp_path)
    with pytest.raises(ScheduleError, match=message):
        FTPForCausalLM.from_pretrained(tmp_path / "pruned", schedule=schedule)


def test_where_no_pruned_model_is_the_error_says_so(tmp_path: Path) -> None:
    for source, reason in ((tmp_path / "nowhere", "there is no directory"), (tmp_path, "has no config.json")):
        with pytest.raises(
            ModelError, match=f"A pruned model at '{source}' cannot be loaded .*{reason}.*save_pretrained"
        ):
            FTPForCausalLM.from_pretrained(source)
    (tmp_path / "config.json").write_text('{"model_type": "ft')
    with pytest.raises(ModelError, match="cannot be loaded .*not a valid JSON file"):
        FTPForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="config is a LlamaConfig, but must be an FTPConfig"):
        FTPForCausalLM.from_pretrained(tmp_path, config=tiny().config)


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


@pytest.mark.parametrize("name", each(CONFIGS))
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


def test_nothing_is_written_that_code_could_hide_in(tmp_path: Path) -> None:
    saved(tmp_path, max_shard_size="20KB")
    names = {path.name for path in (tmp_path / "pruned").iterdir()}
    assert all(name.endswith((".safetensors", ".json")) for name in names - {"README.md", "modeling_ftp.py"})
    # The code is ours, and the same in every model.
    assert (tmp_path / "pruned" / "modeling_ftp.py").read_text() == Path(modeling_ftp.__file__).read_text()
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())["model_type"] == "ftp"
    assert FTPForCausalLM.from_pretrained(tmp_path / "pruned").schedule == MIXED
