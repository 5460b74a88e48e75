"""What the address of a page holds, so that links, Back and reloading show the same again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qs

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html

# Where the browser has its own functions.
NAMESPACE = "ftp"
# Values by parameter, as an address gives them.
Asked = Mapping[str, Sequence[str]]
NOTHING_ASKED: Asked = {}
_MOST_PARAMETERS = 64


@dataclass(frozen=True)
class Kept:
    """A value of a page that its address holds; one that is as by default is left out there."""

    name: str  # parameter of the address
    component: str  # id of the component that has it
    default: str | Sequence[str] = ""  # value without the parameter; a list for one that repeats
    choices: Sequence[str] | None = None  # possible values; None for any
    is_typed: bool = False  # replaces the address as it is typed, instead of one more step to go back
    prop: str = "value"  # property of the component

    def of(self, asked: Asked) -> Any:
        """The value that an address asks for; the default if that is none or not possible."""
        said = asked.get(self.name)
        if said is None:
            return self.default
        if not isinstance(self.default, str):
            return [one for one in said if one and self._is_possible(one)]
        return said[-1] if self._is_possible(said[-1]) else self.default

    def _is_possible(self, value: str) -> bool:
        return self.choices is None or value in self.choices


def asked_of(search: str | None) -> Asked:
    """The parameters of an address, from its part behind the path."""
    try:
        return parse_qs((search or "").removeprefix("?"), keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        return {}


def keep(page: str, kept: Sequence[Kept]) -> html.Div:
    """Components that tell the browser what the address of a page holds; `page` names them."""
    # Without an output, Dash would not call what writes the address as a page appears.
    told = dcc.Store(id=f"{page}-kept", data=[asdict(one) for one in kept])
    return html.Div([told, dcc.Store(id=f"{page}-written")])


def register_kept(dash: Dash, page: str, components: Sequence[tuple[str, str]]) -> None:
    """Add the callback that writes a page's address.

    Args:
        dash: The application.
        page: Name of the page.
        components: Id and property of each component whose value is kept, in the order of `keep`.
    """
    dash.clientside_callback(
        ClientsideFunction(NAMESPACE, "writeAddress"),
        Output(f"{page}-written", "data"),
        *(Input(component, prop) for component, prop in components),
        State(f"{page}-kept", "data"),
    )
