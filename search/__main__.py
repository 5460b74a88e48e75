"""`python -m search` is the same as `ftp-search`."""

from search.cli import main

main()
