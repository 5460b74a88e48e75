"""The program `ftp-search`, which `python -m search` is, too."""

from __future__ import annotations

from search.startup import ends_at_once


def main() -> None:
    """Load the command line, and run it."""
    with ends_at_once():
        from search.cli import main as run
    run()


if __name__ == "__main__":
    main()
