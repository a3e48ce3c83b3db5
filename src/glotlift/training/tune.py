"""LoRA on question pairs, with transformers' Trainer and peft (arXiv 2405.13816, section 3).

Enters: a loaded model and question pairs. Leaves: a peft adapter folder and the history of the loss. Checkpoints stand
in a folder beside; training that was stopped goes on from the last one that is whole.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from glotlift.data.questions import QuestionPair
from glotlift.errors import DataError, ModelError, RunError
from glotlift.models.load import LoadedModel
from glotlift.progress import track
from glotlift.runs import saving
from glotlift.training.objective import Collator, target_loss, tokenize_pair

log = logging.getLogger(__name__)

_WHOLE = "whole"
"""Name of the file that a checkpoint gets last."""


class QuestionTrainer(Trainer):
    """The Trainer with the loss of `glotlift.training.objective`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # the Trainer then counts the target tokens of the whole optimizer step and does not rescale the loss
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a micro-batch as its part of the optimizer step's mean."""
        loss = target_loss(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes, tokens are summed
        return (loss, {"loss": loss}) if return_outputs else loss


class _Progress(TrainerCallback):
    """Shows steps and the loss, refuses a loss that is not finite, and marks checkpoints that are whole."""

    def __init__(self) -> None:
        self.shown: Any = None
        self.advance: Any = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.shown = track("train", state.max_steps, "steps")
        self.advance = self.shown.__enter__()
        if state.global_step:
            self.advance(state.global_step)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.advance(1)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        step = state.global_step
        for what in ("loss", "grad_norm"):
            if not math.isfinite(value := (logs or {}).get(what, 0.0)):
                raise RunError(f"the training {what} is {value} at step {step}, expected a number; lower learning_rate")

    def on_save(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / _WHOLE).touch()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal; a second call does nothing."""
        if self.shown is not None:
            self.shown.__exit__(None, None, None)
            self.shown = None


def tune(
    loaded: LoadedModel,
    pairs: Sequence[QuestionPair],
    validation: Sequence[QuestionPair],
    checkpoints: Path,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    target_modules: str | Sequence[str],
    learning_rate: float,
    scheduler: str,
    warmup_fraction: float,
    weight_decay: float,
    max_grad_norm: float,
    epochs: float,
    batch_size: int,
    micro_batch_size: int,
    max_length: int,
    save_steps: int,
    seed: int,
) -> tuple[Any, dict[str, Any]]:
    """Train LoRA weights on question pairs.

    Args:
        loaded: the base model; it gets the adapter.
        pairs: what is learned from.
        validation: pairs whose loss is measured at the end, a language at a time; may be empty.
        checkpoints: folder for checkpoints; training goes on from the last whole one in it.
        rank: rank of the LoRA update.
        alpha: LoRA's scale; the update is multiplied by `alpha / rank`.
        dropout: on the input of LoRA's down projection.
        target_modules: names of linear layers, or `all-linear`.
        learning_rate: peak of the schedule.
        scheduler: its shape, one of transformers' names.
        warmup_fraction: share of the steps that warm up.
        weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to this norm.
        epochs: passes over the pairs.
        batch_size: pairs an optimizer step of one process.
        micro_batch_size: pairs a forward pass.
        max_length: tokens a pair may have.
        save_steps: optimizer steps between checkpoints.
        seed: of the LoRA weights, data order and dropout.

    Returns:
        The peft model, and a history: `log` (one entry a log step), `validation_loss` (nats a target token, a
        language), `target_tokens` and `tokens` of one epoch, `trainable_parameters`.

    Raises:
        DataError: there are no pairs, or one is too long.
        ModelError: no layer has one of the names in `target_modules`.
        RunError: the loss is not finite.
    """
    if not pairs:
        raise DataError("got no question pairs to train on, expected at least one")
    rows = [tokenize_pair(loaded.tokenizer, pair, max_length) for pair in pairs]
    model = _with_lora(loaded, rank, alpha, dropout, target_modules, seed)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=micro_batch_size,
        per_device_eval_batch_size=micro_batch_size,
        gradient_accumulation_steps=batch_size // micro_batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type=scheduler,
        warmup_steps=warmup_fraction,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        num_train_epochs=epochs,
        train_sampling_strategy="group_by_length",
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite must show
        save_steps=save_steps,
        save_total_limit=2,
        remove_unused_columns=False,
        prediction_loss_only=True,
        bf16=loaded.model.dtype == torch.bfloat16,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )
    tokenizer = loaded.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    callback = _Progress()
    trainer = QuestionTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=Collator(pad or 0),  # pyright: ignore[reportArgumentType]
        callbacks=[callback],
    )
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    try:
        with saving(checkpoints):
            trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    finally:
        callback.close()
    history = {
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "validation_loss": _validation_loss(trainer, loaded, validation, max_length),
        "target_tokens": sum(label >= 0 for row in rows for label in row["labels"]),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    model.eval()
    return model, history


def last_checkpoint(folder: Path) -> str | None:
    """Return the last whole checkpoint of a folder, None where there is none. Drops those that are not whole."""
    whole = []
    for found in folder.glob("checkpoint-*"):
        if (found / _WHOLE).is_file():
            whole.append(found)
        else:
            log.info("dropping %s: it was not written to the end", found.name)
            shutil.rmtree(found)
    return str(max(whole, key=lambda found: int(found.name.rsplit("-", 1)[1]))) if whole else None


def _with_lora(
    loaded: LoadedModel, rank: int, alpha: int, dropout: float, target_modules: str | Sequence[str], seed: int
) -> Any:
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM"
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(loaded.model, config)
        except ValueError as fault:
            raise ModelError(f"train.target_modules: {str(fault).splitlines()[0]}") from None


def _validation_loss(
    trainer: Trainer, loaded: LoadedModel, pairs: Sequence[QuestionPair], max_length: int
) -> Mapping[str, float]:
    losses = {}
    for code in dict.fromkeys(pair.source for pair in pairs):
        rows = [tokenize_pair(loaded.tokenizer, pair, max_length) for pair in pairs if pair.source == code]
        trainer.model.eval()  # pyright: ignore[reportOptionalMemberAccess]
        collate: Any = trainer.data_collator
        total = count = 0.0
        with torch.inference_mode():
            for start in range(0, len(rows), trainer.args.per_device_eval_batch_size):
                batch = collate(rows[start : start + trainer.args.per_device_eval_batch_size])
                batch = {key: value.to(trainer.args.device) for key, value in batch.items()}
                total += target_loss(trainer.model, batch, 1).item()  # pyright: ignore[reportArgumentType]
                count += (batch["labels"] >= 0).sum().item()
        losses[code] = round(total / count, 6)
        if not math.isfinite(losses[code]):
            raise RunError(f"the validation loss in {code} is {losses[code]}, expected a number; lower learning_rate")
    return losses
