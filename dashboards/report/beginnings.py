"""Sentences on the beginning of prompts, such as a chat's system turn."""

from __future__ import annotations

from collections.abc import Sequence

from ftp_core.schedule import kept_count


def about_beginnings(
    keep_first: int, unprotected: str | None, schedule: Sequence[float] | None = None, length: int = 0
) -> list[str]:
    """Beginnings of prompts that skip: those that nobody protects, and those that blocks keep too few tokens for.

    Args:
        keep_first: Tokens that are protected.
        unprotected: A warning that most prompts begin alike, and that this is not protected; None if there is none.
        schedule: Selected schedule, one sparsity per block; None if none was.
        length: Tokens of a prompt to look at.
    """
    found = [] if unprotected is None else [unprotected]
    # One of those that are kept is left to the router, see `ftp_core.routers.state.n_protected`.
    short = [
        str(block)
        for block, sparsity in enumerate(schedule or ())
        if sparsity > 0 and kept_count(sparsity, length) - 1 < min(keep_first, length)
    ]
    if keep_first and short:
        are_several = len(short) > 1
        blocks = f"Block{'s' if are_several else ''} {', '.join(short)} keep{'' if are_several else 's'}"
        found.append(
            f"{blocks} too few tokens of a prompt of {length} to protect its first {keep_first}: the last of these "
            "skip there. A lower --keep-first, or --dense-blocks with these, protects all that it is to protect."
        )
    return found
