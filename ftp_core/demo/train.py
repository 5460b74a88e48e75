"""Trains the demo model: `python -m ftp_core.demo.train --out DIR`.

A curriculum, because the task is not learnable from scratch in minutes: bare pairs over four words of each list, then
more words, then sentences in place of pairs, then longer and noisier stories, at four blocks; then blocks that change
nothing are inserted until there are twelve, and all of it is trained on. Matrices learn by Muon
(https://kellerjordan.github.io/posts/muon), the rest by AdamW. Every batch is a function of (seed, step), so a stopped
run continues as if it had not been.

Dimensions: B rows, L tokens of a row, P predicted tokens of a batch.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ftp_core.demo.evaluate import accuracy_by_distance, print_accuracy
from ftp_core.demo.task import FULL, Difficulty, Story, corpus_words, make_story
from ftp_core.errors import ModelError
from ftp_core.text.encoding import pad_right

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
CONTEXT = 512
WIDTH = 128
N_HEADS = 4
MLP_WIDTH = 320
SHALLOW_BLOCKS = 4
DEEP_BLOCKS = 12
QUESTIONS_PER_STORY = 10
POOL = 4
PASS_MARK = 0.8
ADAM_SHARE = 0.1
DEEP_LR_SHARE = 0.4
WARM_UP_STEPS = 50


@dataclass
class Progression:
    """Position in the curriculum; a checkpoint holds it beside the tensors."""

    step: int = 0  # optimizer steps taken
    stage: int = 0  # index into `curriculum()`
    in_stage: int = 0  # steps taken in that stage
    deep_step: int = -1  # steps taken since the model was deepened; -1 before that
    accuracy: float = 0.0  # moving average of the share of questions answered right on fresh stories of the stage
    log: list[list[float]] = field(default_factory=list)  # `[step, stage, loss, accuracy]` of every tenth step


def curriculum() -> list[Difficulty]:
    """The stages of the shallow model, from four words in bare pairs to the full task."""
    stages = [Difficulty(n, 1.0, 1.0, 6, 10, 0.0) for n in (4, 6, 9, 14, 21, 32)]
    stages += [Difficulty(32, share, 1.0, 6, 10, 0.0) for share in (0.7, 0.3, 0.0)]
    stages += [Difficulty(32, 0.0, share, 6, 10, 0.0) for share in (0.8, 0.6, 0.4, 0.2, 0.0)]
    stages += [Difficulty(32, 0.0, 0.0, 6, 12, noise) for noise in (0.5, 1.0)]
    stages += [Difficulty(32, 0.0, 0.0, 8, most, 1.0) for most in (16, 22)]
    return [*stages, FULL]


def build_tokenizer(model_max_length: int) -> PreTrainedTokenizerFast:
    """Trains a fast tokenizer on the demo's words, with `<s>` before every text; other text falls back to bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Twice, because the trainer drops pairs seen once; with the leading space that words carry inside a text.
    words = ["Story:", *(f" {word}" for word in sorted(set(corpus_words())))]
    tokenizer.train_from_iterator([*words, *words], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=model_max_length,
        padding_side="right",
    )


def build_model(vocab_size: int, n_blocks: int) -> LlamaForCausalLM:
    """A Llama of the demo's shape with fresh weights."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=MLP_WIDTH,
        num_hidden_layers=n_blocks,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def deepen(model: LlamaForCausalLM, n_blocks: int) -> LlamaForCausalLM:
    """Inserts blocks that pass their input through (output projections zero), spread evenly between the old ones."""
    old = model.config.num_hidden_layers
    deep = build_model(model.config.vocab_size, n_blocks)
    deep.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    deep.model.norm.load_state_dict(model.model.norm.state_dict())
    # Old block i becomes the last of its share of the new depth.
    homes = {(i + 1) * n_blocks // old - 1: i for i in range(old)}
    for index, block in enumerate(deep.model.layers):
        if index in homes:
            block.load_state_dict(model.model.layers[homes[index]].state_dict())
        else:
            nn.init.zeros_(block.self_attn.o_proj.weight)
            nn.init.zeros_(block.mlp.down_proj.weight)
    return deep


def encode_story(tokenizer: PreTrainedTokenizerFast, story: Story) -> tuple[list[int], list[int]]:
    """Token ids of a story with its questions and answers, and a 0/1 list that marks the answers' tokens."""
    pieces = [story.text, *(text for q in story.questions for text in (f" {q.text}", q.answer))]
    encoded = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    ids, marks = [tokenizer.bos_token_id], [0]
    for index, piece in enumerate(encoded):
        ids += piece
        # Piece 0 is the story; answers are every second piece after it.
        marks += [int(index > 0 and index % 2 == 0)] * len(piece)
    return [*ids, tokenizer.eos_token_id][:CONTEXT], [*marks, 0][:CONTEXT]


def rows_per_batch(level: Difficulty, tokens: int) -> int:
    """Number of stories of a level that hold about `tokens` tokens."""
    statement = 3 * level.bare_statements + 7 * (1 - level.bare_statements) + 2 * level.noise
    question = 4 * level.bare_questions + 11 * (1 - level.bare_questions)
    mean_statements = (level.min_statements + level.max_statements) / 2
    return max(1, round(tokens / (mean_statements * statement + QUESTIONS_PER_STORY * question)))


def batch(
    tokenizer: PreTrainedTokenizerFast, seed: int, step: int, size: int, level: Difficulty
) -> tuple[Tensor, Tensor]:
    """Training batch number `step`: ids `[B, L]`, padded right, and the marks of answer tokens `[B, L]`."""
    # Stories of one pool are sorted by length before they are cut into batches, so that little padding is computed.
    first = (step // POOL) * POOL * size
    pool = [
        encode_story(tokenizer, make_story("train", seed, first + i, level, QUESTIONS_PER_STORY))
        for i in range(POOL * size)
    ]
    pool.sort(key=lambda pair: len(pair[0]))
    rows = pool[(step % POOL) * size : (step % POOL + 1) * size]
    return pad_right([ids for ids, _ in rows], 0), pad_right([marks for _, marks in rows], 0)


def losses(model: LlamaForCausalLM, ids_BL: Tensor, marks_BL: Tensor) -> tuple[Tensor, float, float]:
    """Training loss (answers plus a tenth of all tokens), answer loss in nats, and share of answers fully right."""
    real_BL = ids_BL[:, 1:] != 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden_BLD = model.model(input_ids=ids_BL, use_cache=False).last_hidden_state[:, :-1]
        logits_PV = model.lm_head(hidden_BLD[real_BL])
    targets_P, answer_P = ids_BL[:, 1:][real_BL], marks_BL[:, 1:][real_BL].bool()
    nll_P = nn.functional.cross_entropy(logits_PV.float(), targets_P, reduction="none")
    # An answer is right when each of its tokens is: count runs of marked tokens and those without a miss.
    starts_P = answer_P & ~torch.cat([answer_P.new_zeros(1), answer_P[:-1]])
    run = torch.cumsum(starts_P, 0)[answer_P]
    wrong = (logits_PV.argmax(-1) != targets_P)[answer_P].float()
    misses = torch.zeros(int(starts_P.sum()) + 1).index_add_(0, run, wrong)
    accuracy = float((misses[1:] == 0).float().mean())
    answer_loss = nll_P[answer_P].mean()
    return answer_loss + 0.1 * nll_P.mean(), float(answer_loss.detach()), accuracy


def optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    rest = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers" in name)]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.0)
    adam = torch.optim.AdamW(rest, lr=lr * ADAM_SHARE, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adam]


def save_checkpoint(path: Path, model: LlamaForCausalLM, opts: list[torch.optim.Optimizer], state: Progression) -> None:
    """Writes model, optimizer state and progression as one safetensors file, replacing the last one atomically."""
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for n, opt in enumerate(opts):
        for p, entry in opt.state_dict()["state"].items():
            tensors |= {f"opt.{n}.{p}.{k}": torch.as_tensor(v).contiguous() for k, v in entry.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"progression": json.dumps(asdict(state))})
    os.replace(partial, path)


def load_checkpoint(
    path: Path, vocab_size: int, lr: float
) -> tuple[LlamaForCausalLM, list[torch.optim.Optimizer], Progression]:
    """Reads what `save_checkpoint` wrote."""
    with safe_open(path, "pt") as file:
        state = Progression(**json.loads(file.metadata()["progression"]))
    tensors = load_file(path)
    model = build_model(vocab_size, SHALLOW_BLOCKS if state.deep_step < 0 else DEEP_BLOCKS)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False)
    model.tie_weights()
    opts = optimizers(model, lr)
    for n, opt in enumerate(opts):
        entries: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, value in tensors.items():
            if name.startswith(f"opt.{n}."):
                _, _, p, key = name.split(".", 3)
                entries[int(p)][key] = value
        opt.load_state_dict({"state": dict(entries), "param_groups": opt.state_dict()["param_groups"]})
    return model, opts, state


def learning_rate(state: Progression, peak: float, settle_steps: int, deep_steps: int) -> float:
    """Constant over the curriculum, then one cosine at four blocks and a lower one at twelve.

    The curriculum wants a rate at which accuracy stalls at about 80 %; only the decay brings it higher.
    """
    last = len(curriculum()) - 1
    if state.deep_step >= 0:
        warm_up = min(1.0, (state.deep_step + 1) / WARM_UP_STEPS)
        return DEEP_LR_SHARE * peak * warm_up * (0.02 + 0.98 * _cosine(state.deep_step / deep_steps))
    if state.stage == last:
        return peak * (0.1 + 0.9 * _cosine(state.in_stage / settle_steps))
    return peak * min(1.0, (state.step + 1) / WARM_UP_STEPS)


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def advance(
    model: LlamaForCausalLM, opts: list[torch.optim.Optimizer], state: Progression, settle_steps: int, lr: float
) -> tuple[LlamaForCausalLM, list[torch.optim.Optimizer]]:
    """Goes on, after a step, to the next stage if this one is passed, and to twelve blocks after the last."""
    last = len(curriculum()) - 1
    if state.deep_step >= 0:
        state.deep_step += 1
    elif state.stage < last and state.in_stage >= 8 and state.accuracy > PASS_MARK:
        state.stage, state.in_stage, state.accuracy = state.stage + 1, 0, 0.0
    elif state.stage == last and state.in_stage >= settle_steps:
        model, state.deep_step = deepen(model, DEEP_BLOCKS), 0
        opts = optimizers(model, lr)
    return model, opts


def train(
    out: Path,
    work: Path,
    seed: int,
    settle_steps: int,
    deep_steps: int,
    batch_tokens: int,
    lr: float,
    max_minutes: float,
    overwrite: bool = False,
) -> None:
    """Runs or continues the curriculum, then writes the finished model to `out` and prints its held-out accuracy.

    Raises:
        ModelError: `out` holds something, and is not to be overwritten.
    """
    if not overwrite and os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ModelError(f"{out} is there already: choose another --out, or replace what it holds with --overwrite.")
    torch.manual_seed(seed)
    tokenizer, stages = build_tokenizer(CONTEXT), curriculum()
    checkpoint = work / "checkpoint.safetensors"
    if checkpoint.exists():
        model, opts, state = load_checkpoint(checkpoint, len(tokenizer), lr)
    else:
        model, state = build_model(len(tokenizer), SHALLOW_BLOCKS), Progression()
        opts = optimizers(model, lr)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    started = last_save = time.monotonic()
    with Progress(*columns) as progress:
        bar = progress.add_task("curriculum", total=len(stages) + 1)
        while state.deep_step < deep_steps and time.monotonic() - started < max_minutes * 60:
            rate = learning_rate(state, lr, settle_steps, deep_steps)
            for opt, share in zip(opts, (1.0, ADAM_SHARE), strict=True):
                opt.param_groups[0]["lr"] = rate * share
            level = stages[state.stage]
            ids, marks = batch(tokenizer, seed, state.step, rows_per_batch(level, batch_tokens), level)
            loss, answer_loss, accuracy = losses(model, ids, marks)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                opt.step()
                opt.zero_grad(set_to_none=True)
            state.step, state.in_stage = state.step + 1, state.in_stage + 1
            state.accuracy += (accuracy - state.accuracy) * max(0.1, 1 / state.in_stage)
            if state.step % 10 == 0:
                state.log.append([state.step, state.stage, round(answer_loss, 4), round(state.accuracy, 4)])
                if not progress.console.is_terminal:
                    elapsed = time.monotonic() - started
                    print(
                        f"step {state.step}  stage {state.stage}  deep {state.deep_step}  loss {answer_loss:.3f}  "
                        f"right {state.accuracy:.1%}  {elapsed:.0f} s",
                        flush=True,
                    )
            model, opts = advance(model, opts, state, settle_steps, lr)
            done = state.stage + max(0, state.deep_step) / deep_steps + (state.deep_step >= 0)
            text = f"step {state.step}  loss {answer_loss:.3f}  right {state.accuracy:.1%}"
            progress.update(bar, completed=done, description=text)
            if time.monotonic() - last_save > 60:
                save_checkpoint(checkpoint, model, opts, state)
                last_save = time.monotonic()
    save_checkpoint(checkpoint, model, opts, state)
    if state.deep_step < deep_steps:
        print(f"stopped at step {state.step}; the same command goes on from {checkpoint}")
        return
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"wrote {out}; its held-out accuracy:")
    # What was written, with its weights rounded to bf16, is what is judged.
    print_accuracy(accuracy_by_distance(model.float(), tokenizer, "validation", seed, per_distance=50))


def main() -> None:
    """Command line of `python -m ftp_core.demo.train`."""
    parser = argparse.ArgumentParser(prog="python -m ftp_core.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-training/model"), help="where the model goes")
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="where the checkpoint is kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settle-steps", type=int, default=400, help="steps at full difficulty with four blocks")
    parser.add_argument("--deep-steps", type=int, default=500, help="steps with all twelve blocks")
    parser.add_argument("--batch-tokens", type=int, default=2500, help="tokens in a step, about")
    parser.add_argument("--lr", type=float, default=0.02, help="of Muon; AdamW's is a tenth of it")
    parser.add_argument("--max-minutes", type=float, default=math.inf, help="stop after this long; run again to go on")
    parser.add_argument("--overwrite", action="store_true", help="replace what --out holds")
    args = parser.parse_args()
    try:
        train(**vars(args))
    except ModelError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
