"""Finds and checks the model that a user names, before torch and transformers are loaded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftp_core.demo import assets
from ftp_core.errors import ModelError
from ftp_core.loading.gguf_files import SMOLLM2, SUFFIX, check_gguf, smollm2_file
from ftp_core.loading.reference import ModelName, ModelReference, check_adapter
from ftp_core.skipping.families import PRUNED_TYPE, family_described

DEMO = "demo"
# What studies keep as it is, as these are other places on other machines.
NAMED = (DEMO, SMOLLM2)
_HUB = "hf:"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# Classes of transformers without a language model's head, or with another head.
_NO_LANGUAGE_MODEL = re.compile(r".*(?<!LMHead)Model|.*For(?!CausalLM)[A-Z]\w*")


def locate(model: ModelName) -> str:
    """Returns the directory, GGUF file or Hugging Face id that a user's name for a model stands for.

    Args:
        model: `demo`, `smollm2`, a local directory, a GGUF file, or a Hugging Face id, which `hf:` may stand before;
            perhaps with a revision and an adapter.

    Raises:
        ModelError: It is neither, files are missing there, or its config.json is not of a model that can skip tokens,
            as far as can be told without transformers.
    """
    reference = ModelReference.of(model)
    # A path is one, whatever it looks like; a text may also be an id.
    is_path, name = not isinstance(reference.name, str), os.fspath(reference.name)
    if reference.adapter is not None:
        check_adapter(reference.adapter)
    place = None if name.startswith(_HUB) and not is_path else _local(name, is_path)
    if place is not None:
        if reference.revision is not None:
            raise ModelError(
                f"The revision {reference.revision!r} is of models on the Hugging Face Hub, but {name!r} lies on this "
                "machine: leave it out."
            )
        return place
    name = name.removeprefix(_HUB)
    config = _config_on_hub(name, reference.revision)
    if config is not None:
        _check_config(config, name)
    return name


def is_local(name: str) -> bool:
    """Returns True if a user's name for a model is of one on this machine, whose files are checked."""
    return not name.startswith(_HUB) and _local(name, False) is not None


def _local(name: str, is_path: bool) -> str | None:
    """The place on this machine that a name stands for, checked; None for the id of a model on the Hub."""
    if name == DEMO and not is_path:
        return str(assets())
    if name == SMOLLM2 and not is_path:
        file = smollm2_file()
        check_gguf(file, name)
        return str(file)
    path = Path(name).expanduser()
    if path.suffix == SUFFIX:
        check_gguf(path, name)
        return str(path.resolve())
    if is_path or path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        _check_directory(path, name)
        _check_config(_read_config(path / "config.json", name), name)
        return str(path.resolve())
    return None


def check_hub(name: str, revision: str | None) -> None:
    """Raises `ModelError` unless the model's revision is cached or the Hub answers for it.

    transformers itself would retry for half a minute before it says that there is no network.
    """
    _config_on_hub(name, revision)


@cache
def _config_on_hub(name: str, revision: str | None) -> Mapping[str, Any] | None:
    """Returns the config.json of a model on the Hub; None if the Hub does not tell."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(cached, str):
            return HfApi().model_info(name, revision=revision, timeout=10).config
    except Exception as error:  # the client's network errors come from whichever HTTP library it is built on
        known = hub_error(error, name, revision)
        if known is not None:
            raise known from error
        raise ModelError(
            f"Cannot find the model {name!r}: expected 'demo', 'smollm2', a local directory, a GGUF file, or the id of "
            f"a model on the Hugging Face Hub that this machine can reach ({one_line(error)})."
        ) from error
    return _read_config(Path(cached), name)


def hub_error(error: BaseException, name: str, revision: str | None) -> ModelError | None:
    """Advice on an error of the Hub, if there is any: a gated model, a revision that is none."""
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GatedRepoError):
            return ModelError(
                f"The model {name!r} is gated: accept its terms at https://huggingface.co/{name}, and log in with "
                "'hf auth login' or set HF_TOKEN."
            )
        if isinstance(cause, RevisionNotFoundError):
            return ModelError(
                f"The model {name!r} has no revision {revision!r}: expected a branch, a tag or a commit of it."
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _read_config(path: Path, name: str) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise ModelError(f"The config.json of model {name!r} cannot be read: {one_line(error)}") from error
    return config


def _check_config(config: Mapping[str, Any], name: str) -> None:
    """Raises `ModelError` unless a config.json is of a causal language model of a supported family."""
    kind = config.get("model_type")
    if kind == PRUNED_TYPE:
        base, revision = config.get("base_model"), config.get("base_revision")
        dense = "the dense model that it was made from" if base is None else f"its dense model, {base!r}"
        dense += f" with --revision {revision}" if revision else ""
        raise ModelError(f"{name!r} is a pruned model already: give {dense}.")
    if kind is not None:
        family_described(config)
        _check_quantisation(config, name)
    classes = config.get("architectures") or []
    others = [one for one in classes if isinstance(one, str) and _NO_LANGUAGE_MODEL.fullmatch(one)]
    if others and len(others) == len(classes):
        raise ModelError(
            f"The model {name!r} is a {others[0]}, not a causal language model: expected one such as LlamaForCausalLM, "
            "which predicts the next token."
        )


def weights_of(source: str) -> list[Path]:
    """Returns the files with a local model's weights; none for one on the Hub."""
    return sorted(Path(source).glob("*.safetensors"))


# Packages without which transformers cannot run weights that were quantised so.
_KERNELS = {
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "gptq": "gptqmodel",
    "quanto": "optimum.quanto",
    "torchao": "torchao",
}


def _check_quantisation(config: Mapping[str, Any], name: str) -> None:
    """Raises `ModelError` if weights are quantised in a way that a missing package would run."""
    quantisation = config.get("quantization_config")
    if not isinstance(quantisation, Mapping):
        return
    method = str(quantisation.get("quant_method") or "bitsandbytes")
    package = _KERNELS.get(method)
    if package is not None and not _is_there(package):
        install = package.replace("_", "-").replace(".", "-")
        raise ModelError(
            f"The weights of the model {name!r} are quantised by {method}, which the package {install} runs, and it is "
            f"not installed: pip install {install}, or give the model that was quantised."
        )


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        # Of its parent.
        return False


def _check_directory(path: Path, name: str) -> None:
    """Raises `ModelError` unless a directory has all files of a model."""
    if not (path / "config.json").is_file():
        raise ModelError(
            f"No model at {name!r}: expected 'demo', 'smollm2', a GGUF file, a directory with config.json and "
            "safetensors weights, or a Hugging Face id such as 'meta-llama/Llama-3.2-1B'."
        )
    if (path / _INDEX).is_file():
        try:
            shards = sorted(set(json.loads((path / _INDEX).read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path / _INDEX} is not an index of safetensors shards: {one_line(error)}") from error
    else:
        shards = [_WEIGHTS]
    missing = [shard for shard in shards if not (path / shard).is_file()]
    if missing:
        raise ModelError(
            f"The model at {name!r} has no {missing[0]}: expected its weights as safetensors "
            "(save_pretrained writes them)."
        )
    if not any((path / file).is_file() for file in _TOKENIZERS):
        raise ModelError(f"The model at {name!r} has no tokenizer: expected {' or '.join(_TOKENIZERS)} beside it.")


def one_line(error: Exception) -> str:
    """An error's type and message, short and on one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {' '.join(text.split())[:300]}" if text else type(error).__name__
