"""Fingerprints: what tells weights, and all that numbers depend on, from any other.

Enters: values, or the folder of a model or adapter. Leaves: short digests by content, never by name or date.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from glotlift.errors import ModelError
from glotlift.strict_json import read_json


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(*parts: object) -> str:
    """Return a short digest of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_fingerprint(source: str) -> str:
    """Return a digest of a model's or adapter's config and weights, by content.

    Args:
        source: a folder, or a hub id, whose files are fetched into the hub cache where they are not there yet.

    Raises:
        ModelError: it is neither.
    """
    folder = model_files(source)
    return digest(*(_config(folder / name) for name in ("config.json", "adapter_config.json")), _digests(folder))


def tensors_fingerprint(source: str) -> str:
    """Return a digest of a model's weights alone: its config also says which version of transformers saved it.

    Args:
        source: as in `weights_fingerprint`.

    Raises:
        ModelError: as there.
    """
    return digest(_digests(model_files(source)))


def model_files(source: str) -> Path:
    """Return the folder with the configs and weights of a model or adapter, fetched where they are not there yet."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "adapter_config.json", "history.json", "*model*.safetensors", "*model*.bin"]
    try:
        return Path(snapshot_download(source, allow_patterns=wanted))
    except (OSError, ValueError) as fault:
        raise ModelError(f"model {source!r} cannot be fetched: {str(fault).splitlines()[0]}") from fault


def _digests(folder: Path) -> list[str]:
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    return [_sha256_of(file, (s := file.stat()).st_ino, s.st_size, s.st_mtime_ns) for file in weights]


def _config(file: Path) -> Any:
    """Return a config; peft writes `target_modules` in the order of a set, which differs from process to process."""
    if not file.is_file():
        return None
    content = read_json(file, ModelError, infinite=True)
    modules = content.get("target_modules")
    return {**content, "target_modules": sorted(modules) if isinstance(modules, list) else modules}


@cache
def _sha256_of(file: Path, _inode: int, _size: int, _modified: int) -> str:
    """Return the digest of a file; the rest of the key tells that it was replaced, as a run's adapter is."""
    return file_digest(file)
