"""Tables as examples, read by the library `datasets`: of the Hugging Face Hub, Parquet, CSV, JSON, and its own.

It is an optional dependency, imported here alone.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ftp_core.errors import DataError
from ftp_core.extras import install_extra
from ftp_core.loading.model_source import one_line
from ftp_core.sources.columns import Columns
from ftp_core.sources.rows import examples_of
from ftp_core.text.data import Example

try:
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
except ImportError as error:
    raise DataError(f"The library datasets is missing ({error}): {install_extra('datasets')} installs it.") from error

_TRAIN = "train"


def load_table(path: str | os.PathLike[str], reader: str, columns: Columns | None = None) -> list[Example]:
    """Read examples from a file, or from a folder of such files or one that `save_to_disk` wrote; nothing is cached.

    Args:
        path: The file or folder.
        reader: Name of the reader of `datasets`: parquet, csv, json, arrow; `tsv` for CSV with tabs; `disk` for what
            `save_to_disk` wrote.
        columns: Columns that make an example; None to recognise them.

    Raises:
        DataError: It cannot be read, has several splits and no "train", or a row makes no example.
    """
    place = Path(path)
    try:
        if reader == "disk":
            found = datasets.load_from_disk(str(place.resolve()))
        else:
            # A path with signs of patterns is that path, and no pattern.
            files = glob.escape(str(place.resolve()))
            kind, more = ("csv", {"sep": "\t"}) if reader == "tsv" else (reader, {})
            found = datasets.load_dataset(kind, data_files=files, streaming=True, **more)
        table = found if isinstance(found, datasets.Dataset) else _chosen(found, str(path))
        return _examples(str(path), table, columns)
    except DataError:
        raise
    except Exception as error:  # its many readers raise whatever they like
        raise DataError(f"{path}: cannot be read as {reader}: {one_line(error).rstrip('.')}.") from error


def load_hub(name: str, columns: Columns | None = None) -> tuple[list[Example], str]:
    """Read examples of a data set of the Hugging Face Hub, from its cache where the Hub does not answer.

    Args:
        name: `DATASET[:CONFIG][:SPLIT]`; the split may be a slice such as `train[:1000]`, and is "train" if not given.
        columns: Columns that make an example; None to recognise them.

    Returns:
        The examples, and the version of the data set.

    Raises:
        DataError: There is no such data set, configuration or split, it is gated, or a row makes no example.
    """
    # A colon in brackets is of a slice.
    dataset, *rest = re.split(r":(?![^\[]*\])", name)
    _check_hub(dataset)
    try:
        config, split = _parts(name, rest, _configurations(dataset))
        if split is None:
            split = _sole(datasets.get_dataset_split_names(dataset, config), f"hf:{name}")
        datasets.disable_progress_bars()
        table = datasets.load_dataset(dataset, config, split=split)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"The data set hf:{name} cannot be loaded: {one_line(error).rstrip('.')}. Expected hf:DATASET, "
            "hf:DATASET:CONFIG or hf:DATASET:CONFIG:SPLIT of the Hugging Face Hub; a gated one needs `hf auth login`."
        ) from error
    finally:
        datasets.enable_progress_bars()
    return _examples(f"hf:{name}", table, columns), str(table._fingerprint)


def _check_hub(dataset: str) -> None:
    """Raise `DataError` unless the Hub answers for a data set, or it is cached.

    `datasets` itself would retry for half a minute before it says that there is no network.
    """
    if Path(dataset).exists():
        # It would prefer the folder to the data set of the Hub.
        raise DataError(f"hf:{dataset}: a folder of this name is in the way; name the folder without hf:.")
    cached = _cache(dataset)
    if datasets.config.HF_HUB_OFFLINE and not cached.exists():
        raise DataError(f"The data set hf:{dataset} is not cached, and HF_HUB_OFFLINE forbids to ask the Hub for it.")
    if cached.exists():
        return
    try:
        HfApi().dataset_info(dataset, timeout=10)
    except GatedRepoError as error:
        raise DataError(
            f"The data set hf:{dataset} is gated: accept its terms on its page of the Hugging Face Hub, and log in "
            "with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"The Hugging Face Hub has no data set {dataset!r} that this machine may see: expected an id such as "
            "allenai/ai2_arc; private ones need `hf auth login`."
        ) from error
    except Exception as error:  # the client's network errors come from whichever HTTP library it is built on
        raise DataError(
            f"The data set hf:{dataset} is not cached, and the Hugging Face Hub cannot be reached ({one_line(error)}): "
            "give a file, or load it once where there is a network."
        ) from error


def _cache(dataset: str) -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / dataset.replace("/", "___")


def _configurations(dataset: str) -> list[str]:
    names = list(datasets.get_dataset_config_names(dataset))
    if names == ["default"] and _cache(dataset).is_dir():
        # Without the Hub it does not say which configurations are cached.
        cached = sorted(path.name for path in _cache(dataset).iterdir() if path.is_dir())
        if not any(name.startswith("default") for name in cached):
            return cached
    return names


def _parts(name: str, rest: list[str], configurations: list[str]) -> tuple[str | None, str | None]:
    """The configuration and the split that a name asks for."""
    if len(rest) > 2:
        raise DataError(f"hf:{name}: expected at most a configuration and a split behind the data set.")
    config = rest[0] if rest and (len(rest) == 2 or rest[0] in configurations) else None
    split = rest[-1] if rest and (len(rest) == 2 or config is None) else None
    if config is not None and config not in configurations:
        raise DataError(f"hf:{name}: has no configuration {config!r}; expected one of {', '.join(configurations)}.")
    if config is None and len(configurations) > 1 and "default" not in configurations:
        raise DataError(
            f"hf:{name}: the data set has several configurations; name one of {', '.join(configurations)} as "
            "hf:DATASET:CONFIG."
        )
    return config, split


def _chosen(splits: Mapping[str, Any], name: str) -> Any:
    return splits[_sole(list(splits), name)]


def _sole(names: list[str], name: str) -> str:
    """The split to read where none is named: training data, or the only one."""
    if _TRAIN in names or len(names) == 1:
        return _TRAIN if _TRAIN in names else names[0]
    raise DataError(
        f"{name}: has the splits {', '.join(names)}, and none named train: name one, as {name}:SPLIT for the Hub's, as "
        "the folder or file of the split otherwise."
    )


def _examples(place: str, table: Iterable[Mapping[str, Any]], columns: Columns | None) -> list[Example]:
    def rows() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for number, row in enumerate(table, 1):
            yield f"{place}, row {number}", row

    examples = list(examples_of(rows(), columns))
    if not examples:
        raise DataError(f"{place}: holds no example.")
    return examples
