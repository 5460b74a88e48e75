"""Installation of the package's optional parts."""

from __future__ import annotations


def install_extra(name: str) -> str:
    """The command that installs an extra of pyproject.toml; the package is on no index."""
    return f"pip install -c constraints.txt '.[{name}]' in a clone of ftp-search's repository"
