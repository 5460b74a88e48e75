"""The demo's tokenizer: byte-level BPE in which every word of the demo's lexicon is one token."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ftp_core.demo import task

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


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
    words = ["Story:", *(f" {word}" for word in sorted(set(task.corpus_words())))]
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
