"""Choices that fill a gap are scored by what follows it, as lm-evaluation-harness scores WinoGrande."""

from __future__ import annotations

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from ftp_core.errors import DataError
from ftp_core.loading.models import load_model
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.sources.rows import example_of
from ftp_core.text.encoding import EncodedExample, encode, encoded_fingerprint

SENTENCES = [
    ("Anna gave the lamp to Ben because _ needed the light.", "Anna", "Ben", "2"),
    ("The cup was with Carl, so _ had it in the kitchen.", "Dora", "Carl", "2"),
    ("The key is behind the box since _ put it there.", "Ben", "Anna", "1"),
]


def test_choices_are_scored_as_lm_eval_scores_them() -> None:
    loaded = load_model("demo")
    names = ("sentence", "option1", "option2", "answer")
    examples = [example_of(dict(zip(names, row, strict=True))) for row in SENTENCES]
    encoded = encode(loaded.tokenizer, examples, loaded.skipping.context)
    qualities = QualitySet(loaded.skipping, encoded)
    found = qualities.per_item([0.0] * loaded.skipping.n_blocks, StaticRouter())
    harness = HFLM(loaded.skipping.model, tokenizer=loaded.tokenizer, batch_size=1)
    for example, one, item in zip(examples, encoded, found, strict=True):
        pairs = [(example.prompt + text.removesuffix(example.scored), example.scored) for text in example.choices]
        requests = [(pair, *harness._encode_pair(*pair)) for pair in pairs]
        likelihoods = [value for value, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)]
        assert item.choice == max(range(2), key=likelihoods.__getitem__)
        for text, n, (_, _, scored) in zip(one.continuations, one.unscored, requests, strict=True):
            assert list(text[n:]) == scored
    # Scored in full, the choices differ by their names, too.
    likelihoods = torch.tensor([one.unscored for one in encoded])
    assert bool((likelihoods > 0).all())


def test_what_is_not_scored_is_part_of_the_fingerprint_and_checked() -> None:
    plain, filled = (EncodedExample((1,), ((2, 3), (4, 3)), 0, True, (1, 1), unscored=n) for n in ((), (1, 1)))
    assert encoded_fingerprint([plain]) != encoded_fingerprint([filled])
    for wrong in ((1,), (2, 1), (-1, 0)):
        with pytest.raises(DataError, match="unscored tokens"):
            EncodedExample((1,), ((2, 3), (4, 3)), 0, True, (1, 1), unscored=wrong)
