"""Beginnings of prompts: a chat's system turn, and tokens that many share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ftp_core.text.boundary import common_length

# No template contains or changes these; some strip or escape texts.
_SYSTEM, _USER = "Textofthesystem", "Textoftheuser"


@dataclass(frozen=True)
class SharedBeginning:
    """Tokens that many prompts begin with.

    Attributes:
        tokens: Ids of the tokens; none if the prompts begin differently.
        n_prompts: Prompts that begin with them.
    """

    tokens: tuple[int, ...]
    n_prompts: int


def shared_beginning(prompts: Sequence[Sequence[int]], least_share: float) -> SharedBeginning:
    """The longest beginning that at least a share of the prompts, above 0, has in common."""
    # In this order prompts that begin alike are neighbours, and all between two share their common beginning.
    ordered = sorted(tuple(prompt) for prompt in prompts)
    n = max(1, -int(-least_share * len(ordered) // 1))
    best: tuple[int, ...] = ()
    for first, last in zip(ordered, ordered[n - 1 :], strict=False):
        length = common_length(first, last)
        if length > len(best):
            best = first[:length]
    return SharedBeginning(best, sum(prompt[: len(best)] == best for prompt in ordered))


@dataclass(frozen=True)
class SystemTurn:
    """The system turn of a tokenizer's chat template.

    Attributes:
        before: Text before the system's.
        behind: Text between the system's and the user's.
    """

    before: str
    behind: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> SystemTurn | None:
        """The system turn of a tokenizer; None if it has no chat template, or one without a system turn."""
        if not tokenizer.chat_template:
            return None
        chat = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
        try:
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except Exception:  # a template refuses a role with whatever error it likes
            return None
        assert isinstance(text, str)
        before, _, rest = text.partition(_SYSTEM)
        behind, _, end = rest.partition(_USER)
        return cls(before, behind) if before and behind and end else None

    def in_text(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str | None:
        """The system turn that a prompt begins with, up to the user's first word; None if there is none."""
        # A prompt may contain the token that begins every text, or leave it to the tokenizer.
        begin = tokenizer.bos_token or ""
        text = prompt.removeprefix(begin)
        system, behind, _ = text.partition(self.behind)
        if not behind or not system.startswith(self.before.removeprefix(begin)):
            return None
        return prompt[: len(prompt) - len(text)] + system + behind
