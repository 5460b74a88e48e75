"""Help of a command with many options: groups of them, each below a heading."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

_ARGUMENTS, _OPTIONS = "Arguments", "Options"


class GroupedCommand(TyperCommand):
    """A command whose options stand below the heading that each names (`rich_help_panel`), or else below "Options"."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the parameters; headings come in the order in which options first name them."""
        sections: dict[str, list[tuple[str, str]]] = {_ARGUMENTS: [], _OPTIONS: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            is_argument = parameter.param_type_name == "argument"
            heading = _ARGUMENTS if is_argument else getattr(parameter, "rich_help_panel", None) or _OPTIONS
            sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
