"""Examples of a source, by its kind, in disjoint sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftp_core.demo.examples import demo_examples
from ftp_core.sources.columns import Columns
from ftp_core.sources.local import load_path
from ftp_core.sources.progress import Begin, unseen
from ftp_core.sources.source import AS_THEY_ARE, Form, Source
from ftp_core.text.data import Example, split_examples

if TYPE_CHECKING:
    from ftp_core.demo.task import Split
    from ftp_core.loading.models import LoadedModel


@dataclass(frozen=True)
class Contents:
    """Examples of a source.

    Attributes:
        splits: Examples of each set.
        n_repeated: Examples that repeat another one, and are in no set.
        version: Mark that tells the source from a changed one, beside the examples themselves; empty without.
    """

    splits: Mapping[str, list[Example]]
    n_repeated: int = 0
    version: str = ""


def read_source(
    source: Source,
    seed: int,
    sizes: Mapping[str, int],
    form: Form = AS_THEY_ARE,
    begin: Begin = unseen,
    model: LoadedModel | None = None,
) -> Contents:
    """Examples of a source in disjoint sets of so many.

    Args:
        source: The source.
        seed: Seed by which examples are shuffled or made.
        sizes: Examples wanted in each set.
        form: Form in which rows become examples.
        begin: Shows how far work is.
        model: The model that writes text itself; needed for that source alone.

    Raises:
        DataError: The source cannot be read, or has too few examples.
    """
    if source.kind == "demo":
        names: tuple[Split, ...] = ("calibration", "validation", "test")
        return Contents({name: demo_examples(name, sizes[name], seed) for name in names if name in sizes})
    if source.kind == "self":
        # Only the model itself needs torch.
        from ftp_core.sources.own_text import own_text

        assert model is not None
        written = own_text(model, sum(sizes.values()), seed, begin)
        return Contents(split_examples(written, seed, sizes), _n_repeated(written))
    if source.kind == "task":
        return _of_tasks(source, seed, sizes, form, begin)
    columns, version = Columns.parsed(form.columns), ""
    if source.kind == "hf":
        # It takes a second to load, and not everybody has it.
        from ftp_core.sources.tables import load_hub

        with begin(f"Loading {source.label}", 1) as work:
            examples, version = load_hub(source.name, columns)
            work.advance()
    else:
        examples = load_path(source.name, columns)
    return Contents(split_examples(examples, seed, sizes), _n_repeated(examples), version)


def _of_tasks(source: Source, seed: int, sizes: Mapping[str, int], form: Form, begin: Begin) -> Contents:
    """Examples of tasks: the test set is of the documents that figures are published on, the others are not."""
    # It takes seconds to load, and not everybody has it.
    from ftp_core.sources.tasks import load_tasks

    others = {name: size for name, size in sizes.items() if name != "test"}
    found = load_tasks(source.name, form.fewshot, seed, sum(others.values()), sizes.get("test", 0), begin)
    if not found.training:
        return Contents(split_examples(found.test, seed, sizes), _n_repeated(found.test), found.version)
    splits = split_examples(found.training, seed, others) if others else {}
    if "test" in sizes:
        splits |= split_examples(found.test, seed, {"test": sizes["test"]})
    return Contents(splits, _n_repeated(found.training) + _n_repeated(found.test), found.version)


def _n_repeated(examples: list[Example]) -> int:
    return len(examples) - len(set(examples))
