"""Small tokenizers of every kind whose tokens may span the end of a prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    CTRLTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ftp_core.demo import assets

TEXTS = [
    'print("hello")',
    'print("hello world")',
    "def print(hello):",
    "hello world, the answer",
    "Question: who?\nAnswer: C",
    "Question: who?\nAnswer: B",
    "### Response:\nhello world",
    "我喜欢你好世界",
    "你好世界 hello",
    "naïve café",
] * 4
# What prompts and continuations are drawn from: they join to texts in which tokens span the join.
PIECES = [
    *[
        "print",
        "(",
        '("',
        '"',
        "hello",
        '")',
        "hel",
        "lo",
        " wor",
        "ld",
        "wer",
        "Ans",
        " ",
        "  ",
        "\n",
        ":",
        ": C",
        "C",
    ],
    *[
        "我",
        "喜欢",
        "你",
        "好",
        "世界",
        "一丁",
        "cafe",
        "\u0301",
        "é",
        "ﬁ",
        "🙂",
        "zz",
        "###",
        "Response",
        "\u3000",
        "\t",
    ],
]
# As Qwen and Llama 3 cut texts: line breaks go with the sign before them.
_LINE_BREAKS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def _trained(tokenizer: Tokenizer, trainer: object, before: str = "", behind: str = "") -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(TEXTS, trainer)
    special = [one for one in (before, behind) if one]
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{before} $A {behind}".strip(),
            special_tokens=[(one, tokenizer.token_to_id(one)) for one in special],
        )
    names = {"bos_token": before} if before == "<s>" else {}
    names |= {"eos_token": behind} if behind == "</s>" else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _bytes(cut: object | None, normalizer: object | None = None, before: str = "") -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    by_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = by_byte if cut is None else pre_tokenizers.Sequence([cut, by_byte])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _trained(tokenizer, trainer, before)


def across_words() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose tokens know no end of a word."""
    return _bytes(None)


def line_breaks() -> PreTrainedTokenizerFast:
    """Byte-level BPE like Qwen's: a colon and the line break behind it are one token."""
    return _bytes(pre_tokenizers.Split(_LINE_BREAKS, "isolated"), before="<s>")


def composed() -> PreTrainedTokenizerFast:
    """Byte-level BPE over composed characters (NFC)."""
    return _bytes(None, normalizers.NFC())


def split_characters() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which the last byte of one character and the first of the next are a token: 你好."""
    alphabet, merged = sorted(pre_tokenizers.ByteLevel.alphabet()), ("\u0142", "\u00e5")
    vocabulary = {token: number for number, token in enumerate(["<s>", *alphabet, "".join(merged)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [merged]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """BPE as in the first Llamas: a space before every text, and bytes for characters that it does not know."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=special[:3], initial_alphabet=[], limit_alphabet=40, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    for byte in special[3:]:
        vocabulary.setdefault(byte, len(vocabulary))
    rebuilt = Tokenizer.from_str(json.dumps(content))
    rebuilt.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=rebuilt, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    """Unigram as in T5: a space before every text, an end of text behind it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    return _trained(tokenizer, trainer, "<s>", "</s>")


def wordpiece() -> PreTrainedTokenizerFast:
    """WordPiece as in BERT: small letters without accents, between [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    return _trained(tokenizer, trainer, "[CLS]", "[SEP]")


def slow_words() -> PreTrainedTokenizerBase:
    """BPE within words, in Python: it knows no places of its tokens in the text."""
    with TemporaryDirectory() as folder:
        letters = sorted(set("".join(TEXTS).replace(" ", "").replace("\n", "")))
        merged = ["he", "hel", "hell", "hello</w>", "hell@@", "wo", "wor", "ld</w>", "world</w>", "An", "Ans"]
        tokens = [*letters, *(f"{one}@@" for one in letters), "hel@@", "wor@@", "ld", "lo", "hello", "world", "Ans@@"]
        names = {token: number for number, token in enumerate(dict.fromkeys(["<unk>", *tokens, *merged]))}
        (Path(folder) / "vocab.json").write_text(json.dumps(names))
        merges = [
            "h e",
            "he l",
            "hel l",
            "hell o</w>",
            "l d</w>",
            "l o</w>",
            "w o",
            "wo r",
            "wor ld</w>",
            "A n",
            "An s",
        ]
        (Path(folder) / "merges.txt").write_text("\n".join(["#version", *merges, ""]))
        return CTRLTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt")


def slow_bytes() -> PreTrainedTokenizerBase:
    """Bytes with an end of text behind them, in Python."""
    return ByT5Tokenizer(extra_ids=0)


def demo() -> PreTrainedTokenizerBase:
    """The demo model's."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(assets())
    return tokenizer


# Each with the special tokens that it puts before a text and behind it.
_KINDS: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], list[str], list[str]]] = {
    "across words": (across_words, [], []),
    "line breaks": (line_breaks, ["<s>"], []),
    "composed": (composed, [], []),
    "split characters": (split_characters, ["<s>"], []),
    "byte fallback": (byte_fallback, ["<s>"], []),
    "unigram": (unigram, ["<s>"], ["</s>"]),
    "wordpiece": (wordpiece, ["[CLS]"], ["[SEP]"]),
    "slow words": (slow_words, [], []),
    "slow bytes": (slow_bytes, [], ["</s>"]),
    "demo": (demo, ["<s>"], []),
}
KINDS = list(_KINDS)


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a kind, made once."""
    return _KINDS[kind][0]()


def ids_around(kind: str) -> tuple[list[int], list[int]]:
    """Ids of the special tokens that a tokenizer puts before and behind a text."""
    _, before, behind = _KINDS[kind]
    tokenizer = tokenizer_of(kind)
    return tokenizer.convert_tokens_to_ids(before), tokenizer.convert_tokens_to_ids(behind)
