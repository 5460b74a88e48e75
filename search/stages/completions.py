"""From tokens back to text: prompts piece by piece, and what a model answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from ftp_core.routers import Router
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.fitted_keys import keys_fitted
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.boundary import common_length
from ftp_core.text.encoding import ContinuationBatch, EncodedExample, pad_right, prompt_batch

# Pieces before a piece that it is decoded with: some tokenizers write a token otherwise where a text begins.
_BEFORE = 4
_PROMPTS_AT_ONCE = 16


def text_of(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text of an answer behind its prompt, without special tokens and white space around it.

    A character whose first bytes are the prompt's last ones is a part of it.
    """
    alone, whole = (_decoded(tokenizer, one, skip_special_tokens=True) for one in (prompt, [*prompt, *ids]))
    return whole[common_length(alone, whole) :].strip()


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> str:
    """The text of a prompt, without the special tokens that the tokenizer puts before a text."""
    return _decoded(tokenizer, prompt[_n_put_before(tokenizer, prompt) :])


def prompt_pieces(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> list[tuple[str, range]]:
    """The pieces of `prompt_text`, and the places of the tokens that each is made of; joined they are the text.

    A piece is a token, or several that make sense together only: tokens of byte-level vocabularies may be parts of
    characters.
    """
    first = _n_put_before(tokenizer, prompt)
    whole = prompt_text(tokenizer, prompt)
    pieces: list[tuple[str, range]] = []
    start, written = first, 0
    for end in range(first + 1, len(prompt)):
        before = prompt[pieces[-_BEFORE:][0][1].start : start] if pieces else ()
        known, longer = _decoded(tokenizer, before), _decoded(tokenizer, [*before, *prompt[start:end]])
        piece = longer[len(known) :]
        # Part of a character is decoded as a sign for what cannot be read, which is not what stands there.
        if piece and longer.startswith(known) and whole.startswith(piece, written):
            pieces.append((piece, range(start, end)))
            start, written = end, written + len(piece)
    return [*pieces, (whole[written:], range(start, len(prompt)))]


def blocks_run(
    model: SkippingModel,
    tokenizer: PreTrainedTokenizerBase,
    example: EncodedExample,
    schedule: SparsitySchedule,
    router: Router,
) -> list[tuple[str, float]]:
    """The pieces of a prompt with the number of blocks that each runs, where a half counts half.

    Of a piece that several tokens make it is their mean.
    """
    with keys_fitted(model, schedule):
        prefill = model.prefill(prompt_batch([example]), schedule, router)
    halves = torch.stack([*prefill.kept, *prefill.kept_mlp]).sum(0)[0].tolist()
    pieces = prompt_pieces(tokenizer, example.prompt)
    return [(text, sum(halves[token] for token in tokens) / (2 * len(tokens))) for text, tokens in pieces]


@torch.inference_mode()
def greedy_answers(
    model: SkippingModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[EncodedExample],
    schedule: SparsitySchedule,
    router: Router,
    n_tokens: int = 32,
) -> list[str]:
    """Texts that a model writes after each prompt if it always takes the likeliest of at most `n_tokens` tokens.

    The schedule is that of the prompts; what is written runs every block.
    """
    ends = _ends(model, tokenizer)
    with keys_fitted(model, schedule):
        return [
            text_of(tokenizer, one.prompt, row)
            for group in _groups(examples)
            for one, row in zip(group, _greedy_tokens(model, ends, group, schedule, router, n_tokens), strict=True)
        ]


def _greedy_tokens(
    model: SkippingModel,
    ends: set[int],
    group: Sequence[EncodedExample],
    schedule: SparsitySchedule,
    router: Router,
    n_tokens: int,
) -> list[list[int]]:
    """Tokens that `greedy_answers` writes after each prompt of a batch, without the one that ends a text."""
    prompts = prompt_batch(group)
    written: list[list[int]] = [[] for _ in group]
    writing, regimes = list(range(len(group))), [-1] * len(group)
    for step in range(n_tokens):
        # A row ends where its own text does, or its own room, whatever its neighbours do.
        writing = [row for row in writing if len(group[row].prompt) + step < model.context]
        if not writing:
            break
        text_lengths = [len(one.prompt) + step for one in group]
        found = [model.length_regime(length) for length in text_lengths]
        if found != regimes:
            # Where a text grows beyond what a model embeds alike, transformers too computes its keys anew.
            prefill = model.prefill(replace(prompts, text_lengths=torch.tensor(text_lengths)), schedule, router)
            regimes = found
        # The last token of a continuation is only predicted, whatever it is.
        ids = torch.tensor([[*written[row], 0] for row in writing], device=model.device)
        rows = torch.tensor(writing, device=model.device)
        hidden = model.continuation_hidden(prefill, ContinuationBatch(ids, rows))
        likeliest = model.logits(hidden[:, -1]).argmax(-1).tolist()
        for row, token in zip(writing, likeliest, strict=True):
            written[row].append(token)
        writing = [row for row, token in zip(writing, likeliest, strict=True) if token not in ends]
    return [row[:-1] if row and row[-1] in ends else row for row in written]


@torch.inference_mode()
def first_words(
    model: SkippingModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[EncodedExample],
    schedule: SparsitySchedule,
    router: Router,
) -> list[tuple[int, bool]]:
    """The likeliest token in place of each right answer's first one beyond white space, and whether it is that one."""
    found = []
    for group in _groups(examples):
        answers = [_first_word(tokenizer, one.continuations[one.answer]) for one in group]
        with keys_fitted(model, schedule):
            prefill = model.prefill(prompt_batch(group), schedule, router)
        rows = torch.arange(len(group), device=model.device)
        hidden = model.continuation_hidden(prefill, ContinuationBatch(pad_right(answers, 0).to(model.device), rows))
        places = torch.tensor([len(answer) - 1 for answer in answers], device=model.device)
        likeliest = model.logits(hidden[rows, places]).argmax(-1).tolist()
        found += [(token, token == answer[-1]) for token, answer in zip(likeliest, answers, strict=True)]
    return found


def _n_put_before(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> int:
    """Number of tokens that a tokenizer has put before a text; 0 if there is no other token."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return next((place for place, token in enumerate(prompt) if token not in special), 0)


def _groups(examples: Sequence[EncodedExample]) -> list[Sequence[EncodedExample]]:
    return [examples[start : start + _PROMPTS_AT_ONCE] for start in range(0, len(examples), _PROMPTS_AT_ONCE)]


def _first_word(tokenizer: PreTrainedTokenizerBase, answer: tuple[int, ...]) -> tuple[int, ...]:
    """An answer up to its first token that is more than white space."""
    blank = (not _decoded(tokenizer, [token]).strip() for token in answer)
    n_blank = next((place for place, is_blank in enumerate(blank) if not is_blank), len(answer) - 1)
    return answer[: n_blank + 1]


def _ends(model: SkippingModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a text."""
    generation = getattr(model.model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    of_model = ends if isinstance(ends, list) else [ends]
    return {token for token in (*of_model, tokenizer.eos_token_id) if token is not None}


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
