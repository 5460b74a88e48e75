"""Lets transformers find the code of a model that skips tokens: the package ftp-search, which has to be installed."""

try:
    from ftp_core import FTPConfig, FTPForCausalLM
except ImportError as error:
    raise ImportError(
        "This is a pruned model, whose blocks skip tokens: ftp_core, a part of the package ftp-search, runs it, and is "
        f"not installed here ({error}). The README.md beside the model says how to install and load it."
    ) from error

__all__ = ["FTPConfig", "FTPForCausalLM"]
