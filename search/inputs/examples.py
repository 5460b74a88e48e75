"""The examples that a study's data names: of several sources, mixed by their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from ftp_core.errors import DataError
from ftp_core.sources.progress import Begin, unseen
from ftp_core.sources.reading import read_source
from ftp_core.sources.source import AS_THEY_ARE, Form, Source, parse_sources
from ftp_core.text.chat import as_chat
from ftp_core.text.data import Example, fingerprint

if TYPE_CHECKING:
    from ftp_core.loading.models import LoadedModel


@dataclass(frozen=True)
class ReadSource:
    """A source as it was read.

    Attributes:
        name: The source, with its weight where that is not 1.
        version: Mark that tells it from a changed one, beside its examples; empty if there is nothing.
        fingerprint: Hash of its examples, in the order of the splits.
        sizes: Its examples in each split.
    """

    name: str
    version: str
    fingerprint: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class ReadExamples:
    """Examples of every split, as they come; prompts that are in several splits are included.

    Attributes:
        splits: Examples of each split.
        n_repeated: Examples that repeat another one, and are in none.
        sources: The sources that they are of.
    """

    splits: dict[str, list[Example]]
    n_repeated: int
    sources: tuple[ReadSource, ...]


def read_examples(
    data: str,
    seed: int,
    sizes: Mapping[str, int],
    form: Form = AS_THEY_ARE,
    begin: Begin = unseen,
    model: LoadedModel | None = None,
) -> ReadExamples:
    """The examples of every split, of all sources; any number of the first have the sources' shares as far as can be.

    Args:
        data: The sources, as `ftp_core.sources.source.parse_sources` reads them.
        seed: Seed of the splits.
        sizes: Examples wanted in each split.
        form: Form in which rows become examples.
        begin: Shows how far work is.
        model: The model, whose tokenizer writes chats, and which writes text itself.

    Raises:
        DataError: A source cannot be read, or there is too little of it.
    """
    sources = parse_sources(data)
    of_each = _shared(sources, sizes)
    splits: dict[str, list[list[Example]]] = {split: [] for split in sizes}
    read, n_repeated = [], 0
    for source, own_sizes in zip(sources, of_each, strict=True):
        contents = read_source(source, seed, own_sizes, form, begin, model)
        own = {split: list(contents.splits[split]) for split in sizes}
        if form.chat and model is not None:
            own = {split: [as_chat(model.tokenizer, one) for one in examples] for split, examples in own.items()}
        everything = [example for split in sizes for example in own[split]]
        own_lengths = {split: len(own[split]) for split in sizes}
        read.append(ReadSource(str(source), contents.version, fingerprint(everything), own_lengths))
        n_repeated += contents.n_repeated
        for split in sizes:
            splits[split].append(own[split] if len(sources) == 1 else _grouped(own[split], source))
    return ReadExamples({split: _mixed(parts) for split, parts in splits.items()}, n_repeated, tuple(read))


def _shared(sources: tuple[Source, ...], sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Sizes of the splits for each source, in proportion to the weights."""
    shares: list[dict[str, int]] = [{} for _ in sources]
    weights = [Fraction(source.weight) for source in sources]
    for split, size in sizes.items():
        wanted = [size * weight / sum(weights) for weight in weights]
        own = [int(one) for one in wanted]
        # What is left goes to those that are furthest from their share.
        for place in sorted(range(len(own)), key=lambda i: own[i] - wanted[i])[: size - sum(own)]:
            own[place] += 1
        for share, source, n in zip(shares, sources, own, strict=True):
            if n < 1:
                raise DataError(
                    f"The {split} set is to have {size} examples of {len(sources)} sources, of which {source} would "
                    f"give none: ask for more with --{split}-items, or give it more weight."
                )
            share[split] = n
    return shares


def _grouped(examples: list[Example], source: Source) -> list[Example]:
    return [example if example.group is not None else replace(example, group=source.label) for example in examples]


def _mixed(parts: list[list[Example]]) -> list[Example]:
    """Lists as one, of whose beginnings each has its share."""
    placed = [
        ((2 * place + 1) / (2 * len(part)), number, example)
        for number, part in enumerate(parts)
        for place, example in enumerate(part)
    ]
    return [example for _, _, example in sorted(placed, key=lambda one: one[:2])]
