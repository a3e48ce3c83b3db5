"""`glotlift train` as a process: killed at random steps, shared by two processes, looked at without training."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load, save_file

from glotlift.cli import main
from glotlift.models.load import load_model
from glotlift.stages.train import train
from tests.warm import Warm, as_by_torchrun

STEPS = 12


@pytest.fixture(scope="module")
def recipe(tiny_folder, tmp_path_factory):
    """Twelve steps of 4 pairs with dropout, each with a checkpoint."""
    content = {
        "name": "tiny",
        "model": str(tiny_folder),
        "data": {"task": "sentiment", "languages": ["zh", "de"], "limit": 32, "validation_fraction": 0.25},
        "train": {
            "objective": "translation",
            "rank": 2, "batch_size": 4, "micro_batch_size": 2, "dropout": 0.1, "save_steps": 1, "learning_rate": 0.01,
        },
        "eval": {"tasks": [{"task": "sentiment", "limit": 6}], "languages": ["en", "de", "sw"]},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _arguments(recipe, target, *settings):
    asked = [part for setting in settings for part in ("--set", setting)]
    return ["train", str(recipe), "-o", str(target), *asked]


def _start(recipe, target):
    return Warm(main, _arguments(recipe, target))


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """An uninterrupted run."""
    target = tmp_path_factory.mktemp("runs") / "whole"
    train(recipe, target)
    return target


def _adapter(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def _losses(folder):
    history = json.loads((folder / "adapter" / "history.json").read_text())
    return [entry["loss"] for entry in history["log"]]


def test_training_leaves_word_of_its_base(whole, tiny_folder, tmp_path):
    adapter = whole / "adapter"
    history = json.loads((adapter / "history.json").read_text())
    assert history["base_model"] == str(tiny_folder)
    assert load_model(str(tiny_folder), adapter=str(adapter)).foreign_adapter is None
    other = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    weights = load((other / "model.safetensors").read_bytes())
    save_file({name: tensor * 2 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    told = load_model(str(other), adapter=str(adapter)).foreign_adapter or ""
    assert told.startswith(f"the adapter was made for '{tiny_folder}', and is used on '{other}'")


# the workers of one test run must all draw the same steps
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", time.time_ns())
RANDOM = random.Random(os.environ.get("GLOTLIFT_TEST_SEED", RUN))


@pytest.mark.parametrize("step", RANDOM.sample(range(1, STEPS - 1), 5))
def test_killed_at_any_step_it_goes_on_to_the_same_bytes(recipe, whole, tmp_path, step):
    process = _start(recipe, tmp_path / "run")
    while process.poll() is None and not list((tmp_path / "run").glob(f"checkpoints/*/checkpoint-{step}")):
        time.sleep(0.001)
    time.sleep(random.random() * 0.05)  # somewhere between this checkpoint and the next
    process.send_signal(signal.SIGKILL)
    assert process.wait()[0] == -signal.SIGKILL, "it was over before it could be killed"
    assert not (tmp_path / "run" / "adapter").exists()
    train(recipe, tmp_path / "run")
    assert _adapter(tmp_path / "run") == _adapter(whole)
    assert _losses(tmp_path / "run") == _losses(whole)


def test_consistency_that_is_killed_goes_on_to_the_same_bytes(recipe, tmp_path):
    """With replay beside it, and its teacher's scores kept."""
    asked = ("train.objective=consistency", "train.replay=0.5")
    train(recipe, tmp_path / "whole", settings=asked)
    process = Warm(main, _arguments(recipe, tmp_path / "run", *asked))
    while process.poll() is None and not list((tmp_path / "run").glob("checkpoints/*/checkpoint-3")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait()[0] == -signal.SIGKILL, "it was over before it could be killed"
    train(recipe, tmp_path / "run", settings=asked)
    assert _adapter(tmp_path / "run") == _adapter(tmp_path / "whole")
    assert _losses(tmp_path / "run") == _losses(tmp_path / "whole")


def test_ctrl_c_says_how_to_go_on(recipe, whole, tmp_path):
    process = _start(recipe, tmp_path / "run")
    while process.poll() is None and not list((tmp_path / "run").glob("checkpoints/*/checkpoint-2")):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    code, _, err = process.wait(60)
    assert code == 130
    assert "interrupted; the last good checkpoint is of step" in err
    assert "Traceback" not in err
    train(recipe, tmp_path / "run")
    assert _adapter(tmp_path / "run") == _adapter(whole)


LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d",
                 "--rdzv-endpoint", "localhost:0"],
    # on CPUs accelerate starts two processes through MPI only, with --mpirun_hostfile; without, one
    "accelerate": ["accelerate", "launch", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
                   "--dynamo_backend", "no", "--cpu"],
    "accelerate with MPI": ["accelerate", "launch", "--num_processes", "2", "--num_machines", "1", "--mixed_precision",
                            "no", "--dynamo_backend", "no", "--cpu", "--mpirun_hostfile", "HOSTS"],
}  # fmt: skip


@pytest.fixture(scope="module")
def one_process(recipe, tmp_path_factory):
    """A run without dropout, which draws other numbers in every process."""
    target = tmp_path_factory.mktemp("runs") / "one"
    train(recipe, target, settings=["train.dropout=0"])
    return target


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_give_the_loss_curve_of_one(recipe, one_process, tmp_path, monkeypatch, launcher):
    program, *options = LAUNCHERS[launcher]
    path = str(Path(sys.executable).parent / program)
    if "HOSTS" in options:
        if shutil.which("mpirun") is None:
            pytest.skip("there is no mpirun (Debian's package openmpi-bin)")
        (tmp_path / "hosts").write_text("localhost slots=2\n")
        options[options.index("HOSTS")] = str(tmp_path / "hosts")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    command = [path, *options, "-m", "glotlift", *_arguments(recipe, tmp_path / "run", "train.dropout=0")]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    out, err = done.stdout, done.stderr
    assert done.returncode == 0, err
    assert out.count("/adapter") == 1, "only the first process prints"
    assert err.count("data: 64 question pairs") == 1
    assert len(_losses(one_process)) == STEPS
    assert _losses(tmp_path / "run") == pytest.approx(_losses(one_process), abs=1e-5)
    got, expected = (load(_adapter(folder)) for folder in (tmp_path / "run", one_process))
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-3, rtol=1e-3)


def test_a_step_that_processes_cannot_share_is_refused(recipe, tmp_path):
    arguments = _arguments(recipe, tmp_path / "run", "train.batch_size=3", "train.micro_batch_size=1")
    both = [Warm(main, arguments, **environment) for environment in as_by_torchrun(2)]
    for code, _, err in [process.wait() for process in both]:
        assert code == 2
        assert "got train.batch_size 3 for 2 processes, expected a multiple of their number" in err


def test_inspect_and_dry_run_train_nothing(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flag in ("--inspect", "--dry-run"):
        with pytest.raises(SystemExit) as end:
            main(["train", str(recipe), flag])
        assert end.value.code == 0
        out = capsys.readouterr().out
        assert "12 steps, 7,722 tokens of which 2,574 are learned: about" in out
        assert ("Translate the input from German to English:" in out) == (flag == "--inspect")
        assert ("evaluation texts has 8 tokens" in out) == (flag == "--inspect")
    assert not list(tmp_path.iterdir())


def test_settings_replace_those_of_the_file(recipe, capsys):
    with pytest.raises(SystemExit):
        main(["train", str(recipe), "--dry-run", "--set", "train.batch_size=8", "--set", "train.epochs=2"])
    assert capsys.readouterr().out.startswith("12 steps, ")


def test_a_probe_evaluates_unseen_languages_in_between(recipe, whole, tmp_path):
    settings = ["train.probe={languages: [sw, en], steps: 4, limit: 4, patience: 9}"]
    train(recipe, tmp_path / "run", settings=settings)
    probes = json.loads((tmp_path / "run" / "adapter" / "history.json").read_text())["probes"]
    assert [probe["step"] for probe in probes] == [4, 8, 12]
    assert all(0 <= probe["score"] <= 1 and (probe["score"] * 8) % 1 == 0 for probe in probes)  # of 2 x 4 items
    assert _losses(tmp_path / "run") == _losses(whole)  # looking changes nothing, dropout's random numbers included
