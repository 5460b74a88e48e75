"""Devices and precisions: what is asked for, what is here, and what `auto` stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ftp_core.demo import assets
from ftp_core.errors import ModelError
from ftp_core.loading import placement
from ftp_core.loading.models import load_model, published_dtype
from ftp_core.loading.placement import computes_natively, device_of, dtype_of

CPU = torch.device("cpu")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@needs_no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "mps", "tpu", "", "cpu:one"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(device: str) -> None:
    with pytest.raises(ModelError, match=f"{device!r}, but torch finds no such device here: expected auto or cpu"):
        device_of(device)


@needs_no_gpu
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert device_of() == device_of("cpu") == CPU


@pytest.mark.parametrize("published", [torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.float64, None])
@pytest.mark.parametrize("native", [True, False])
def test_auto_is_the_published_precision_only_where_it_is_computed_natively(
    published: torch.dtype | None, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("avx512_bf16", "amx_bf16", "bf16", "amx_fp16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, native))
    halves = (torch.bfloat16, torch.float16)
    assert dtype_of("auto", CPU, published) == (published if native and published in halves else torch.float32)


@pytest.mark.parametrize("name", placement.PRECISIONS)
def test_a_precision_that_is_asked_for_is_taken_native_or_not(name: str) -> None:
    assert dtype_of(name, CPU, torch.float32) == getattr(torch, name) == dtype_of(getattr(torch, name), CPU)


@pytest.mark.parametrize("name", ["float8", "int8", "half", ""])
def test_a_precision_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="expected one of auto, bfloat16, float16, float32"):
        dtype_of(name, CPU)


def test_a_precision_that_the_device_cannot_compute_in_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ModelError, match="is to be float8_e4m3fn, but cpu cannot compute in it"):
        load_model("demo", dtype=torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("is_said", [True, False])
def test_the_published_precision_is_read_from_the_configuration_or_else_from_the_weights(
    dtype: torch.dtype, is_said: bool, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).to(dtype).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    if not is_said:
        config.write_text("\n".join(line for line in config.read_text().splitlines() if '"dtype"' not in line))
    assert published_dtype(str(tmp_path)) == dtype


def test_a_loaded_model_says_where_and_in_which_precision_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert published_dtype(str(assets())) == torch.bfloat16
    plain = load_model("demo")
    assert plain.skipping.model.dtype == torch.float32 and plain.placement == "The CPU computes in float32."
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert not computes_natively(torch.bfloat16, CPU)
    half = load_model("demo", "cpu", "bfloat16")
    assert half.skipping.model.dtype == torch.bfloat16 and "float32 may be faster" in half.placement
    assert load_model("demo", "auto", "auto").skipping.model.dtype == torch.float32
    assert half.fingerprint() != plain.fingerprint() == load_model("demo").fingerprint()
