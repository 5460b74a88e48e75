"""`python -m ftp_core.harness` is lm-eval's own command line, to which `--model ftp` is known."""

from lm_eval.__main__ import cli_evaluate

cli_evaluate()
