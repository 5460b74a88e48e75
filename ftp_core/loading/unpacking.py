"""Unpacks GGUF files to directories that load like any other model."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers.integrations.gguf.reader import GgufHeader

from ftp_core.errors import ModelError
from ftp_core.loading.gguf_files import unpacked_directory
from ftp_core.loading.model_source import one_line
from ftp_core.skipping.families import family_of


def unpacked(file: Path) -> Path:
    """Returns the directory with the model of a GGUF file, which is unpacked when it is first asked for.

    Quantised weights become bfloat16. The directory appears whole or not at all, so that processes may unpack the same
    file at the same time.

    Raises:
        ModelError: The file is broken, or its model cannot skip tokens.
    """
    directory = unpacked_directory(file)
    if directory.is_dir():
        return directory
    dtype = _checked(file)
    sys.stderr.write(f"Unpacking {file.name} once, to {directory}\n")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=directory.parent) as work:
        partial = Path(work) / "model"
        try:
            _unpack(file, partial, dtype)
        except Exception as error:  # broken files surface as whatever their readers raise
            raise ModelError(f"The GGUF file {str(file)!r} cannot be unpacked: {one_line(error)}") from error
        try:
            partial.rename(directory)
        except OSError:
            # Another process was faster.
            if not directory.is_dir():
                raise
            shutil.rmtree(partial)
    return directory


def _checked(file: Path) -> torch.dtype:
    """Checks a file's header before weights are read; returns the precision to unpack them to."""
    try:
        header = GgufHeader.from_file(str(file))
        end = header.data_start + max((one.offset + one.nbytes for one in header.tensors), default=0)
    except Exception as error:  # broken files surface as whatever their reader raises
        raise ModelError(f"The GGUF file {str(file)!r} is broken: {one_line(error)}") from error
    if end > file.stat().st_size:
        raise ModelError(
            f"The GGUF file {str(file)!r} has {file.stat().st_size} of {end} bytes: it was cut short. Download it anew."
        )
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # among them, architectures that transformers does not read from GGUF
        raise ModelError(f"transformers cannot read the GGUF file {str(file)!r}: {one_line(error)}") from error
    family_of(config)
    return header.dtype or torch.bfloat16


def _unpack(file: Path, directory: Path, dtype: torch.dtype) -> None:
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    # Weights are plain now.
    facts = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    with torch.device("meta"):
        plain: PreTrainedModel = type(model)(type(model.config)(**facts))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    assert plain.generation_config is not None
    plain.generation_config.eos_token_id = tokenizer.eos_token_id
    plain.generation_config.pad_token_id = tokenizer.pad_token_id
    plain.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
