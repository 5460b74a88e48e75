"""Writes pruned models: only what will load again, and never over another model."""

from __future__ import annotations

import copy
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ftp_core.checks import is_plain
from ftp_core.errors import ModelError
from ftp_core.loading.hub_cache import cached_commit, origin_of
from ftp_core.loading.identity import model_identity, same_model
from ftp_core.loading.model_source import check_hub
from ftp_core.model.checkpoint import loading
from ftp_core.model.configuration import FTPConfig

_CONFIG = "config.json"
# Whole, a shard, or the index of shards, of one variant.
_WEIGHTS = re.compile(
    r"(?:pytorch_)?model(?:\.(?P<variant>[^.]+?))?(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)"
    r"(?:\.index(?:\.(?P<of_index>[^.]+))?\.json)?"
)
_ADAPTERS = ("lora_", ".base_layer.", ".modules_to_save.")


def check_directory(directory: Path) -> None:
    """Raises `ModelError` if a pruned model must not be written there: it is a file, or holds another model."""
    advice = "name another directory for the pruned model"
    if directory.exists() and not directory.is_dir():
        raise ModelError(f"{directory} is a file: {advice}.")
    if not directory.is_dir():
        return
    if os.path.lexists(directory / _CONFIG):
        try:
            kind = json.loads((directory / _CONFIG).read_text(encoding="utf-8")).get("model_type")
        except (OSError, ValueError, AttributeError):
            kind = None
        if kind != FTPConfig.model_type:
            model = "a model" if kind is None else f"a {kind!r} model"
            raise ModelError(
                f"{directory} holds {model} that is not a pruned one, which would be overwritten: {advice}."
            )
        return
    weights = [path.name for path in sorted(directory.iterdir()) if _WEIGHTS.fullmatch(path.name)]
    if weights:
        raise ModelError(f"{directory} holds {weights[0]} of another model, which would be overwritten: {advice}.")


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """Context with a folder whose files take the place of those of a pruned model once all are written.

    None of them is ever half a file, links are replaced and not followed, and weights that were loaded from there stay
    readable. Earlier weights that the new ones do not replace are deleted: they might be loaded instead.

    Raises:
        ModelError: The directory is a file, or holds another model.
    """
    check_directory(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=directory) as partial:
        yield Path(partial)
        written = sorted(Path(partial).iterdir())
        for path in written:
            os.replace(path, directory / path.name)
    names = {path.name for path in written}
    variants = {_variant(name) for name in names} - {None} or ({""} if _CONFIG in names else set())
    for path in directory.iterdir():
        if path.name not in names and _variant(path.name) in variants:
            path.unlink()


def _variant(name: str) -> str | None:
    """Returns the variant of a file of weights, the empty string if it has none; None for another file."""
    found = _WEIGHTS.fullmatch(name)
    return None if found is None else found["variant"] or found["of_index"] or ""


def loadable_weights(
    model: PreTrainedModel, base: PreTrainedModel, given: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Collects the weights of a pruned model, by name; `given` ones in the place of its own, without the tied ones.

    Raises:
        ModelError: A model of this configuration could not load them: they are missing, of other shapes, of adapters,
            quantised, or not in memory.
    """
    weights = dict(model.state_dict() if given is None else given)
    # Some classes of quantised weights come apart in the dictionary.
    looked_at = [*weights.items(), *(model.named_parameters() if given is None else ())]
    special = next((f"{name} ({type(one).__name__})" for name, one in looked_at if not is_plain(one)), None)
    if special is None and any(getattr(one, "hf_quantizer", None) is not None for one in (model, base)):
        special = "of its blocks"
    if special is not None:
        raise ModelError(
            f"The weights {special} are quantised or not in memory, and cannot be saved: save the pruned model of the "
            "dense one as it is, and quantise it while it is loaded, with "
            "FTPForCausalLM.from_pretrained(..., quantization_config=...)."
        )
    tied = {
        target: source
        for target, source in dict(model._tied_weights_keys or {}).items()
        if base.config.tie_word_embeddings or model.config.tie_word_embeddings
    }
    for target in tied.keys() - weights.keys():
        if tied[target] in weights:
            weights[target] = weights[tied[target]]
    # The model that loading will make, without memory for its weights.
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(copy.deepcopy(base.config)).state_dict()
    shapes = {f"base.{name}": tuple(tensor.shape) for name, tensor in expected.items()}
    shapes |= {name: tuple(one.shape) for name, one in model.state_dict().items() if not name.startswith("base.")}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(shapes.keys() | found.keys()):
        if shapes.get(name) != found.get(name):
            _refuse(name, found.get(name), shapes.get(name))
    # transformers writes one of several that share memory, but reads all that are not tied.
    seen = set()
    for name, tensor in weights.items():
        if name not in tied:
            if tensor.data_ptr() in seen:
                weights[name] = tensor.clone()
            seen.add(tensor.data_ptr())
    return weights


def _refuse(name: str, found: tuple[int, ...] | None, expected: tuple[int, ...] | None) -> None:
    """Raises `ModelError` for a weight that is not what the configuration asks for."""
    if expected is None and any(part in name for part in _ADAPTERS):
        raise ModelError(
            f"The model has adapters that are not merged (weight {name}): save what merge_and_unload() of the peft "
            "model gives, or the adapters alone, with save_pretrained of the model that they were added to."
        )
    has, asks = (("none" if shape is None else f"one of the shape {shape}") for shape in (found, expected))
    raise ModelError(
        f"The model has {has} for the weight {name}, but its configuration asks for {asks}, so that it would not load "
        "again: save all weights of a model that is neither quantised nor taken apart, and a configuration that fits."
    )


def reference(base: PreTrainedModel, pruned: str | None) -> tuple[str, str | None, str | None]:
    """Finds the name of a dense model whose weights are not to be saved, and the identity of what it stands for.

    What comes from the Hub is named by its id and, between the two, its commit, so that other machines find it.

    If its files are not on this machine, its identity is compared with that of the model that was pruned.

    Raises:
        ModelError: It has no name, or the name stands for another model: the weights would be lost.
    """
    advice = "save the dense model and prune what is loaded from there, or include its weights (include_base=True)"
    name = getattr(base, "name_or_path", "")
    if not name:
        raise ModelError(
            f"The dense model was not loaded from a directory or the Hub, so there is nothing to refer to: {advice}."
        )
    origin = origin_of(name)
    name = str(origin.name)
    is_here = Path(name).is_dir()
    revision = origin.revision or (None if is_here else cached_commit(name))
    dtype = base.dtype
    assert isinstance(dtype, torch.dtype)
    try:
        with loading(f"The dense model {name!r}, to which the pruned one would refer,", advice):
            there = AutoModelForCausalLM.from_pretrained(
                name, revision=revision or "main", dtype="auto", use_safetensors=True, local_files_only=True
            )
        # Both rounded to the same precision, in which they are compared to the bit.
        same = model_identity(there, dtype) == model_identity(base, dtype)
        identity: str | None = model_identity(there)
    except ModelError:
        if is_here:
            raise
        check_hub(name, revision)
        same, identity = pruned is None or same_model(model_identity(base), pruned, dtype), pruned
    if not same:
        raise ModelError(
            f"The dense model is not what {name!r} holds: its weights or configuration changed since it was loaded, "
            f"which would be lost: {advice}."
        )
    return name, revision, identity
