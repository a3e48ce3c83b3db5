"""Tuning with transformers' Trainer and peft (arXiv 2405.13816, section 3).

Enters: a loaded model and what it shall learn, as parts of a training. Leaves: a tuned model and the history of the
loss. Checkpoints stand in a folder beside; training that was stopped goes on from the last one that is whole, to the
same weights.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D

from glotlift.errors import DataError, ModelError
from glotlift.models.anatomy import decoder_layers
from glotlift.models.linear import fast_linear
from glotlift.models.load import LoadedModel
from glotlift.models.together import to_device
from glotlift.processes import processes
from glotlift.runs import saving
from glotlift.training.objective import LearnedRow, Objective, Part, Placed, in_order
from glotlift.training.rows import TokenRow
from glotlift.training.settings import TrainSettings
from glotlift.training.watch import WHOLE, Probe, Watch, interruptible

log = logging.getLogger("glotlift")


class PartsTrainer(Trainer):
    """The Trainer with the losses of a training's parts.

    Args:
        parts: what is learned.
        watch: is told which rows every loss is of.
        settings: of the Trainer.
    """

    def __init__(self, parts: Sequence[Part], watch: Watch, **settings: Any) -> None:
        super().__init__(callbacks=[watch], data_collator=self.collate, **settings)
        self.parts, self.watch = parts, watch
        self.model_accepts_loss_kwargs = True  # the Trainer then does not rescale the loss

    def collate(self, placed: Sequence[Placed]) -> dict[str, Any]:
        """Return a micro-batch, whose rows are of one part: what its objective takes, and how the loss is scaled."""
        first = placed[0]
        inputs = self.parts[first.part].objective.collate([each.row for each in placed])
        counted = torch.ones(len(placed), 1)  # the Trainer looks for labels
        return {"part": first.part, "weight": first.weight, "of": first.of, "inputs": inputs, "labels": counted}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a micro-batch as its part of the optimizer step's mean."""
        loss = self.parts[inputs["part"]].objective.loss(model, inputs["inputs"]) / inputs["of"] * inputs["weight"]
        self.watch.saw(inputs["inputs"], loss)
        loss = loss * self.accelerator.num_processes  # gradients are averaged over processes, losses are summed
        return (loss, {"loss": loss}) if return_outputs else loss


def tune(
    loaded: LoadedModel,
    parts: Sequence[Part],
    validation: Sequence[LearnedRow],
    checkpoints: Path,
    settings: TrainSettings,
    *,
    seed: int = 0,
    probe: Probe | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Train a model on several objectives at once, or one.

    Under a launcher of several processes each does its share of every optimizer step; the weights are the same.

    Args:
        loaded: the base model; it gets the adapter, or is tuned itself.
        parts: what is learned, the main objective first.
        validation: rows of the first part whose loss is measured at the end, a language at a time; may be empty.
        checkpoints: folder for checkpoints; training goes on from the last whole one in it.
        settings: of training; `quantization` says how the model was loaded.
        seed: of the LoRA weights, data order and dropout.
        probe: a small evaluation between steps; None for none.

    Returns:
        The model, a peft model for LoRA, and a history: `log` (one entry a step: `step`, `loss` in nats, the parts'
        weighted sum, `grad_norm`, `learning_rate`, `epoch`), `validation_loss` (nats, of the first part, a language),
        `probes`, `parts` (of each: `rows`, `rows_seen`, `weight`), `target_tokens` of translation, `tokens` of all
        steps, `trainable_parameters`.

    Raises:
        DataError: there is nothing to learn.
        ModelError: no layer has one of the names in `target_modules`.
        RunError: the loss is not finite or explodes.
        Interrupted: Ctrl-C; a checkpoint was saved.
    """
    if not parts or not all(part.rows for part in parts):
        raise DataError("got no question pairs to train on, expected at least one")
    _check_loggers(settings.report_to)
    n_processes = processes().count
    micro_batch_size = _micro_batch([part.batch_size for part in parts], settings.micro_batch_size, n_processes)
    rows = in_order(parts, epochs=settings.epochs, micro_batch_size=micro_batch_size, seed=seed)
    step_size = sum(part.batch_size for part in parts)
    model = loaded.model if settings.method == "full" else _with_lora(loaded, settings, seed)
    if settings.gradient_checkpointing:
        enable = getattr(loaded.model, "activation_checkpointing_enable", loaded.model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    n_tokens = loaded.model.config.get_text_config().vocab_size
    watch = Watch(checkpoints, rows, step_size, n_tokens, probe)
    arguments = _arguments(loaded, checkpoints, settings, seed)
    arguments.per_device_train_batch_size = micro_batch_size
    arguments.gradient_accumulation_steps = step_size // (micro_batch_size * n_processes)
    trainer = PartsTrainer(parts, watch, model=model, args=arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    with saving(checkpoints), fast_linear(model), interruptible(watch):
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
        watch.finish(model)
        losses = _validation_loss(model, trainer, parts[0].objective, validation, settings.micro_batch_size)
    history = {
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "validation_loss": losses,
        "probes": watch.probes,
        "parts": {part.name: _told(part, number, rows) for number, part in enumerate(parts)},
        "tokens": sum(row.length for row in rows),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    if learned := [row.row.n_targets for row in rows if isinstance(row.row, TokenRow)]:
        history["target_tokens"] = sum(learned)
    model.eval()
    return model, history


def _told(part: Part, number: int, rows: Sequence[Placed]) -> dict[str, float]:
    seen = sum(row.part == number for row in rows)
    return {"rows": len(part.rows), "rows_seen": seen, "weight": part.weight}


def last_checkpoint(folder: Path) -> str | None:
    """Return the last whole checkpoint of a folder, None where there is none. Drops those that are not whole."""
    whole = []
    for found in folder.glob("checkpoint-*"):
        if (found / WHOLE).is_file():
            whole.append(found)
        else:
            log.info("dropping %s: it was not written to the end", found.name)
            shutil.rmtree(found, ignore_errors=True)  # several processes look
    return str(max(whole, key=lambda found: int(found.name.rsplit("-", 1)[1]))) if whole else None


def _arguments(loaded: LoadedModel, checkpoints: Path, settings: TrainSettings, seed: int) -> TrainingArguments:
    """Return what the Trainer is told; `batch_size` is cut into micro-batches and over the processes."""
    kind = next(loaded.model.parameters()).device.type  # the Trainer would move a model to the GPU that it finds
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_fraction,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=seed,
        save_steps=settings.save_steps,
        report_to=list(settings.report_to) or "none",
        num_train_epochs=1,  # the rows are laid out for all passes, in order
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite must show
        save_total_limit=2,
        remove_unused_columns=False,
        prediction_loss_only=True,
        bf16=loaded.model.dtype == torch.bfloat16,
        fp16=loaded.model.dtype == torch.float16 and kind == "cuda",
        dataloader_pin_memory=kind == "cuda",
        use_cpu=kind == "cpu",
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
    )
    return arguments


def _micro_batch(batch_sizes: Sequence[int], micro_batch_size: int, n_processes: int) -> int:
    """Return rows of a forward pass of one process: the asked number, or less where a part's share is smaller."""
    for size in batch_sizes:
        if size % n_processes:
            raise DataError(
                f"got train.batch_size {size} for {n_processes} processes, expected a multiple of their number"
            )
    share = math.gcd(*(size // n_processes for size in batch_sizes))
    return next(size for size in range(min(micro_batch_size, share), 0, -1) if share % size == 0)


def _check_loggers(names: Sequence[str]) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise DataError(f"got train.report_to {name}, which is not installed; expected `pip install {name}`")


def _with_lora(loaded: LoadedModel, settings: TrainSettings, seed: int) -> Any:
    targets, blocks = _targets(loaded.model, settings)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        target_modules=targets,
        layers_to_transform=blocks,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in loaded.model.modules()),  # GPT-2
    )
    is_whole = settings.quantization == "none"
    model = loaded.model if is_whole else prepare_model_for_kbit_training(loaded.model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as fault:
            raise ModelError(f"train.target_modules: {str(fault).splitlines()[0]}") from None


def _targets(model: Any, settings: TrainSettings) -> tuple[str | list[str], list[int] | None]:
    """Return what peft is told to adapt: names of layers, and numbers of blocks where not all have an adapter."""
    targets = settings.target_modules
    if settings.lora_layers == (0.0, 1.0):
        return targets if isinstance(targets, str) else list(targets), None
    layers = decoder_layers(model)
    low, high = (share * len(layers) for share in settings.lora_layers)
    blocks = list(range(math.floor(low + 1e-9), math.ceil(high - 1e-9)))
    if targets != "all-linear":
        return [targets] if isinstance(targets, str) else list(targets), blocks
    kinds = (nn.Linear, Conv1D)
    return sorted({name.rsplit(".", 1)[-1] for name, m in layers.named_modules() if isinstance(m, kinds)}), blocks


def _validation_loss(
    model: Any, trainer: Trainer, objective: Objective, rows: Sequence[LearnedRow], batch_size: int
) -> Mapping[str, float]:
    """Return the mean loss of held-out rows in nats, a language."""
    losses = {}
    model.eval()
    for code in dict.fromkeys(row.language for row in rows):
        own = sorted((row for row in rows if row.language == code), key=lambda row: row.length)
        total = 0.0
        with torch.inference_mode():
            for start in range(0, len(own), batch_size):
                batch = objective.collate(own[start : start + batch_size])
                total += objective.loss(model, to_device(batch, trainer.args.device)).item()
        losses[code] = round(total / sum(row.weight for row in own), 6)
    return losses
