"""How the optional parts of the package are installed."""

from __future__ import annotations


def install_extra(name: str) -> str:
    """What to run for an extra of pyproject.toml: the package is on no index, where its name would be found."""
    return f"pip install -c constraints.txt '.[{name}]' in a clone of ftp-search's repository"
