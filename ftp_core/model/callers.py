"""Refuses programs that would compute something else with a pruned model than they mean to."""

from __future__ import annotations

import sys
from types import FrameType

from ftp_core.errors import ModelError

# The module of lm-eval's class for models of transformers.
_HARNESS = "lm_eval.models.huggingface"


def check_caller() -> None:
    """Raises `ModelError` if lm-eval's own class loads the model, and not `ftp_core.harness`, which is derived from it.

    That class takes the choices that it scores for a part of the prompt.
    """
    if _HARNESS not in sys.modules:
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        asking = frame.f_locals.get("self") if frame.f_globals.get("__name__") == _HARNESS else None
        if asking is not None:
            if type(asking).__module__ == _HARNESS:
                raise ModelError(
                    "lm-eval's model 'hf' takes what it scores for a part of the prompt, tokens of which skip: its "
                    "figures would be wrong. Give --model ftp (python -m ftp_core.harness; docs/lm-eval.md)."
                )
            return
        frame = frame.f_back
