"""Tuning on question pairs, with transformers' Trainer and peft (arXiv 2405.13816, section 3).

Enters: a loaded model and question pairs. Leaves: a tuned model and the history of the loss. Checkpoints stand in a
folder beside; training that was stopped goes on from the last one that is whole, to the same weights.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D

from glotlift.data.questions import QuestionPair
from glotlift.errors import DataError, ModelError
from glotlift.models.linear import fast_linear
from glotlift.models.load import LoadedModel
from glotlift.runs import saving
from glotlift.training.objective import Collator, target_loss
from glotlift.training.order import step_order
from glotlift.training.rows import TokenRow, tokenize_pairs
from glotlift.training.settings import TrainSettings
from glotlift.training.watch import WHOLE, Probe, Watch, interruptible

log = logging.getLogger("glotlift")


class QuestionTrainer(Trainer):
    """The Trainer with the loss of `glotlift.training.objective`.

    Args:
        watch: is told which rows every loss is of.
        settings: of the Trainer.
    """

    def __init__(self, watch: Watch, **settings: Any) -> None:
        super().__init__(callbacks=[watch], **settings)
        self.watch = watch
        # the Trainer then counts the target tokens of the whole optimizer step and does not rescale the loss
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a micro-batch as its part of the optimizer step's mean."""
        loss = target_loss(model, inputs, num_items_in_batch)
        self.watch.saw(inputs, loss)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes, tokens are summed
        return (loss, {"loss": loss}) if return_outputs else loss


def tune(
    loaded: LoadedModel,
    pairs: Sequence[QuestionPair],
    validation: Sequence[QuestionPair],
    checkpoints: Path,
    settings: TrainSettings,
    *,
    layout: str = "",
    seed: int = 0,
    probe: Probe | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Train a model to translate questions back.

    Under a launcher of several processes each does its share of every optimizer step; the weights are the same.

    Args:
        loaded: the base model; it gets the adapter, or is tuned itself.
        pairs: what is learned from.
        validation: pairs whose loss is measured at the end, a language at a time; may be empty.
        checkpoints: folder for checkpoints; training goes on from the last whole one in it.
        settings: of training; `quantization` says how the model was loaded.
        layout: see `tokenize_pairs`.
        seed: of the LoRA weights, data order and dropout.
        probe: a small evaluation between steps; None for none.

    Returns:
        The model, a peft model for LoRA, and a history: `log` (one entry a step: `step`, `loss` in nats a target token,
        `grad_norm`, `learning_rate`, `epoch`), `validation_loss` (nats a target token, a language), `probes`,
        `target_tokens` and `tokens` of all steps, `trainable_parameters`.

    Raises:
        DataError: there are no pairs, or some cannot be trained on (all are named).
        ModelError: no layer has one of the names in `target_modules`.
        RunError: the loss is not finite or explodes.
        Interrupted: Ctrl-C; a checkpoint was saved.
    """
    if not pairs:
        raise DataError("got no question pairs to train on, expected at least one")
    _check_loggers(settings.report_to)
    rows = tokenize_pairs(loaded.tokenizer, pairs, settings, layout)
    held_out = tokenize_pairs(loaded.tokenizer, validation, settings, layout)
    lengths = [len(row.input_ids) for row in rows]
    order = step_order(lengths, epochs=settings.epochs, batch_size=settings.batch_size, seed=seed)
    in_order = [rows[index] for index in order]
    model = loaded.model if settings.method == "full" else _with_lora(loaded, settings, seed)
    if settings.gradient_checkpointing:
        enable = getattr(loaded.model, "activation_checkpointing_enable", loaded.model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    n_tokens = loaded.model.config.get_text_config().vocab_size
    watch = Watch(checkpoints, in_order, settings.batch_size, n_tokens, probe)
    trainer = QuestionTrainer(
        watch,
        model=model,
        args=_arguments(loaded, checkpoints, settings, seed),
        train_dataset=in_order,
        data_collator=Collator(_padding(loaded)),  # pyright: ignore[reportArgumentType]
    )
    trainer.remove_callback(PrinterCallback)
    with saving(checkpoints), fast_linear(model), interruptible(watch):
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
        watch.finish(model)
        losses = _validation_loss(model, trainer, held_out, settings.micro_batch_size)
    history = {
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "validation_loss": losses,
        "probes": watch.probes,
        "target_tokens": sum(row.n_targets for row in in_order),
        "tokens": sum(len(row.input_ids) for row in in_order),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    model.eval()
    return model, history


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
    on_gpu = torch.cuda.is_available()
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
        fp16=loaded.model.dtype == torch.float16 and on_gpu,
        dataloader_pin_memory=on_gpu,
        use_cpu=not on_gpu,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
    )
    share = _micro_batch(settings.batch_size, settings.micro_batch_size, arguments.world_size)
    arguments.per_device_train_batch_size = share
    arguments.gradient_accumulation_steps = settings.batch_size // (share * arguments.world_size)
    return arguments


def _micro_batch(batch_size: int, micro_batch_size: int, n_processes: int) -> int:
    """Return pairs of a forward pass of one process: the asked number, or less where its share of a step is smaller."""
    if batch_size % n_processes:
        raise DataError(
            f"got train.batch_size {batch_size} for {n_processes} processes, expected a multiple of their number"
        )
    share = batch_size // n_processes
    return next(size for size in range(min(micro_batch_size, share), 0, -1) if share % size == 0)


def _padding(loaded: LoadedModel) -> int:
    tokenizer = loaded.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return pad if isinstance(pad, int) else 0


def _check_loggers(names: Sequence[str]) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise DataError(f"got train.report_to {name}, which is not installed; expected `pip install {name}`")


def _with_lora(loaded: LoadedModel, settings: TrainSettings, seed: int) -> Any:
    targets = settings.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        target_modules=targets if isinstance(targets, str) else list(targets),
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


def _validation_loss(model: Any, trainer: Trainer, rows: Sequence[TokenRow], batch_size: int) -> Mapping[str, float]:
    """Return the loss of held-out pairs in nats a target token, a language."""
    losses = {}
    model.eval()
    collate: Any = trainer.data_collator
    for code in dict.fromkeys(row.language for row in rows):
        own = sorted((row for row in rows if row.language == code), key=lambda row: len(row.input_ids))
        total = 0.0
        with torch.inference_mode():
            for start in range(0, len(own), batch_size):
                batch = collate(own[start : start + batch_size])
                batch = {k: v.to(trainer.args.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
                total += target_loss(model, batch, 1).item()
        losses[code] = round(total / sum(row.n_targets for row in own), 6)
    return losses
