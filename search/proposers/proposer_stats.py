"""Statistics of proposers, by which trials are shared out among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass
class ProposerStatistics:
    """Statistics of a proposer in a study, over all its runs.

    Attributes:
        asked: Proposals that it made.
        repeated: Those of them that the study had already.
        finished: Trials of its proposals that finished with values.
        seconds: Time that it took to propose.
        gain: Sum of the shares by which its trials enlarged the front's hypervolume.
        share: Share of the trials that it gets now; 0 for what takes no part in the portfolio.
    """

    asked: int = 0
    repeated: int = 0
    finished: int = 0
    seconds: float = 0.0
    gain: float = 0.0
    share: float = 0.0

    @classmethod
    def stored(cls, state: Mapping[str, Any]) -> ProposerStatistics:
        """Statistics as a study stores them; unknown fields are ignored."""
        return cls(**{field.name: state[field.name] for field in fields(cls) if field.name in state})
