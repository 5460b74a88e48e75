"""Training can be stopped at any step; deepening changes nothing until it is trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ftp_core.demo import train as training
from ftp_core.demo.train import (
    DEEP_BLOCKS,
    SHALLOW_BLOCKS,
    Progression,
    build_model,
    build_tokenizer,
    curriculum,
    deepen,
    learning_rate,
    load_checkpoint,
    losses,
    optimizers,
    save_checkpoint,
)

VOCABULARY = 100


def step(model: torch.nn.Module, opts: list[torch.optim.Optimizer], number: int) -> None:
    ids = torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(number))
    loss, _, _ = losses(model, ids, (ids % 3 == 0).long())
    loss.backward()
    for opt in opts:
        opt.step()
        opt.zero_grad()


def test_deepening_changes_nothing_at_first() -> None:
    model = build_model(VOCABULARY, SHALLOW_BLOCKS)
    deep = deepen(model, DEEP_BLOCKS)
    ids = torch.randint(1, VOCABULARY, (2, 20))
    assert deep.config.num_hidden_layers == DEEP_BLOCKS == len(deep.model.layers)
    torch.testing.assert_close(deep(ids).logits, model(ids).logits)


def test_a_stopped_run_continues_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(VOCABULARY, SHALLOW_BLOCKS)
    opts = optimizers(model, 0.01)
    for number in range(3):
        step(model, opts, number)
    state = Progression(step=3, stage=1, in_stage=2, accuracy=0.5, log=[[1, 2, 3.0, 4.0]])
    save_checkpoint(tmp_path / "checkpoint.safetensors", model, opts, state)
    again, opts_again, state_again = load_checkpoint(tmp_path / "checkpoint.safetensors", VOCABULARY, 0.01)
    assert state_again == state
    for number in range(3, 6):
        step(model, opts, number)
        step(again, opts_again, number)
    for (name, one), two in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_the_learning_rate_decays_only_after_the_curriculum() -> None:
    last = len(curriculum()) - 1
    assert learning_rate(Progression(step=500, stage=3), 0.02, 400, 500) == 0.02
    assert learning_rate(Progression(step=500, stage=last, in_stage=400), 0.02, 400, 500) == pytest.approx(0.002)
    assert learning_rate(Progression(step=900, stage=last, deep_step=499), 0.02, 400, 500) < 0.0003


def test_an_answer_is_right_only_if_all_its_tokens_are() -> None:
    model = build_model(VOCABULARY, 1)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        likeliest = model(ids).logits.argmax(-1)[0]
    # Two answers of two tokens; the model gets the first one wholly right, of the second only one token.
    ids = torch.cat([ids[0, :1], likeliest[:1]])[None]
    for _ in range(4):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    ids[0, 5] = (ids[0, 5] + 1) % VOCABULARY
    _, _, accuracy = losses(model, ids, torch.tensor([[0, 1, 1, 0, 1, 1]]))
    assert accuracy == 0.5


@pytest.mark.slow
def test_training_writes_a_model_that_transformers_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    levels = curriculum()
    monkeypatch.setattr(training, "curriculum", lambda: [levels[0], levels[9], levels[-1]])
    monkeypatch.setattr(training, "PASS_MARK", -1.0)
    monkeypatch.setattr(training, "accuracy_by_distance", lambda *_, **__: {})
    monkeypatch.setattr(training, "print_accuracy", lambda _: None)
    arguments = {
        "out": tmp_path / "model",
        "work": tmp_path,
        "seed": 0,
        "settle_steps": 1,
        "deep_steps": 1,
        "batch_tokens": 200,
        "lr": 0.01,
    }
    training.train(**arguments, max_minutes=0.0)
    assert not (tmp_path / "model").exists()
    training.train(**arguments, max_minutes=10.0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(model.model.layers) == DEEP_BLOCKS
    assert model.dtype is torch.bfloat16
    assert len(tokenizer) == len(build_tokenizer(512)) == model.config.vocab_size
