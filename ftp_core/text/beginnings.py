"""How prompts begin: with a chat's system turn, or with the same tokens as others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ftp_core.text.boundary import common_length

# No template has them, and none changes them, as some strip or escape what they are given.
_SYSTEM, _USER = "Textofthesystem", "Textoftheuser"


@dataclass(frozen=True)
class SharedBeginning:
    """Tokens that many prompts begin with, all the same.

    Attributes:
        tokens: Their ids; none if they begin differently.
        n_prompts: Prompts that begin with them.
    """

    tokens: tuple[int, ...]
    n_prompts: int


def shared_beginning(prompts: Sequence[Sequence[int]], least_share: float) -> SharedBeginning:
    """The longest beginning that a share of the prompts, at least, has in common.

    Args:
        prompts: Token ids of each.
        least_share: Of the prompts, above 0.
    """
    # In this order prompts that begin alike are neighbours, and what two have in common all between them have.
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
    """How a tokenizer's chat template writes the system turn: what stands before its text, and up to the user's.

    Attributes:
        before: Begins a chat.
        behind: Ends the system's text and introduces the user's.
    """

    before: str
    behind: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> SystemTurn | None:
        """The one of a tokenizer; None if it has no chat template, or one without a system turn."""
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
        """The system turn that a prompt begins with, up to the user's first word; None if it begins with none."""
        # The token that begins every text may be written in a prompt, or be put before it by the tokenizer.
        begin = tokenizer.bos_token or ""
        text = prompt.removeprefix(begin)
        system, behind, _ = text.partition(self.behind)
        if not behind or not system.startswith(self.before.removeprefix(begin)):
            return None
        return prompt[: len(prompt) - len(text)] + system + behind
