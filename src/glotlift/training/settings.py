"""Settings of tuning: the part `train` of a recipe, and the presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from glotlift.fields import Codes, Count, Fraction, Natural
from glotlift.schema import Frozen


class ProbeSettings(Frozen):
    """A small evaluation in between: accuracy of constrained decoding on a few unseen languages, every `steps` steps.

    Training stops when it has not risen for `patience` probes, and the best weights are kept. It reads the right
    answers of its items, so weights that are chosen by it are chosen with labels.
    """

    steps: Count
    task: str | None = None
    source: str | None = None
    languages: Codes
    limit: Count = 50
    patience: Count = 3


class MergeSettings(Frozen):
    """Merging: `strength` is what a LoRA adapter is multiplied by, 1 as it was trained."""

    strength: float = Field(1.0, gt=0)


TUNED = ("translation", "consistency", "contrastive")
"""Objectives that tune weights, alone or together."""

CLOSED_FORM = ("readout", "steering")
"""Objectives that tune none: what they learn is computed, and stands beside the model."""

TAUGHT = {"consistency", "readout", "steering"}
"""Objectives that have a teacher."""

OBJECTIVES = (*TUNED, *CLOSED_FORM)


def _weights(value: Any) -> Any:
    if isinstance(value, str):
        value = {value: 1.0}
    if not isinstance(value, dict):
        return value
    if not value or any(name not in OBJECTIVES for name in value):
        got = ", ".join(map(str, value)) or "none"
        raise ValueError(f"got {got}, expected one of {', '.join(OBJECTIVES)}, or several with a weight each")
    if len(value) > 1 and (alone := [name for name in value if name in CLOSED_FORM]):
        raise ValueError(f"got {alone[0]} together with others, expected it alone: it tunes no weights")
    return value


Objectives = Annotated[dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(_weights)]
"""Objective -> weight of its loss; one name stands for itself."""


_OF_TUNING = (
    "method", "rank", "alpha", "dropout", "rslora", "dora", "target_modules", "lora_layers", "learning_rate",
    "scheduler", "warmup_fraction", "weight_decay", "max_grad_norm", "epochs", "batch_size", "micro_batch_size",
    "gradient_checkpointing", "save_steps", "report_to", "probe", "replay",
)  # fmt: skip

_READ_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_OF_TUNING, TUNED),
    **dict.fromkeys(("cue", "max_length", "too_long"), ("translation",)),
    "teacher": ("consistency", *CLOSED_FORM),
    "sentences": ("consistency", "readout"),
    "center": ("consistency",),  # readout and steering take every mean off
    "layer": ("contrastive",),
}
"""Setting -> objectives that read it, where some do not."""


Control = Literal[
    "none", "shuffled-teacher", "own-language-teacher", "constant-teacher", "gold", "shuffled-pairs", "copied-pairs"
]
"""What stands in the teacher's place."""


class TrainSettings(Frozen):
    """Tuning on questions without answers.

    Attributes:
        objective: what is learned: without tuning a weight, `readout` or `steering`; or `translation` (arXiv
            2405.13816), `consistency`, `contrastive`, or several of these with a weight each. See docs/training.md.
        cue: what becomes of the answer cue at the end of a translation's target: `kept`, as published, `masked` (read
            and not learned, nor the end behind it), or `stripped`.
        replay: weight of the divergence from the base model on English prompts, where labels are scored and inside the
            question; 0 for none.
        teacher: whose answers `consistency` and `readout` take over: the base model's in `english`, by the `sentences`
            of a question in English, or of the `ensemble` of English and all languages of the questions.
        sentences: whether `consistency` and `readout` also learn from the sentences of questions, where a translation
            has as many as the English question.
        center: what a language's mean label score is held to: its own in the base (`language`), none (`zero`),
            English's (`prior`); see `glotlift.training.teacher`.
        control: what stands in the teacher's place, to see what the recipe gains without it. `shuffled-pairs` gives
            every question another one's English version, in any objective; `copied-pairs` lets translation copy the
            English question, so that no other language is read. `gold` is the ceiling: it learns from right answers,
            which nothing else does; beside it only `probe` reads any.
        layer: where `contrastive` compares states, as a share of the depth.
        answers: answer words of the prompts that are learned from, see `glotlift.tasks.task.Task.answers`; by default
            those that the task is first evaluated with, else `own`.
        num_fewshot: demonstrations of these prompts; likewise, else as many as the task file shows.
        preset: gives the settings that are not written: `default`, our best, or ours of another objective; `paper`
            (arXiv 2405.13816) or `qalign` (NJUNLP/QAlign); see `PRESETS`. A written `objective` must have the preset's
            in it.
        method: `lora`, or `full` for all weights.
        rank: rank of the LoRA update.
        alpha: LoRA's scale; the update is multiplied by `alpha / rank`, with rsLoRA by `alpha / sqrt(rank)`.
        dropout: on the input of LoRA's down projection.
        rslora: rank-stabilized LoRA (arXiv 2312.03732).
        dora: weight-decomposed LoRA (arXiv 2402.09353).
        quantization: `4bit` to load the base's weights so (QLoRA, arXiv 2305.14314).
        target_modules: names of linear layers, or `all-linear`.
        lora_layers: which blocks get an adapter, as shares of the depth: `[0.6, 1]` for the upper two fifths.
        prompt_format: see `glotlift.training.rows.PROMPT_FORMATS`.
        learning_rate: peak of the schedule.
        scheduler: its shape, one of transformers' names.
        warmup_fraction: share of the steps that warm up.
        weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to this norm.
        epochs: passes over the pairs; rounded up to whole steps.
        batch_size: pairs an optimizer step, whatever is run at once and by how many processes.
        micro_batch_size: pairs a forward pass, at most a process's share of a step.
        max_length: tokens a pair may have.
        too_long: `error` refuses a longer pair, `truncate` cuts its end off.
        gradient_checkpointing: compute activations again in the backward pass; less memory, more time.
        save_steps: optimizer steps between checkpoints.
        probe: a small evaluation between steps, which reads right answers and keeps the best weights.
        report_to: loggers of the Trainer.
    """

    preset: Literal["default", "consistency", "contrastive", "steering", "translation", "paper", "qalign"] = "default"
    objective: Objectives = {"readout": 1.0}
    cue: Literal["kept", "masked", "stripped"] = "stripped"
    replay: float = Field(0.0, ge=0)
    teacher: Literal["english", "sentences", "ensemble"] = "sentences"
    sentences: bool = True
    center: Literal["language", "zero", "prior"] = "language"
    control: Control = "none"
    layer: float = Field(0.5, gt=0, le=1)
    answers: str | None = None
    num_fewshot: Natural | None = None
    method: Literal["lora", "full"] = "lora"
    rank: Count = 16
    alpha: Count = 32
    dropout: Fraction = 0.0
    rslora: bool = False
    dora: bool = False
    quantization: Literal["none", "4bit"] = "none"
    target_modules: str | tuple[str, ...] = "all-linear"
    lora_layers: tuple[float, float] = (0.0, 1.0)
    prompt_format: Literal["plain", "alpaca", "chat"] = "plain"
    learning_rate: float = Field(2e-4, gt=0)
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_fraction: Fraction = 0.1
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    epochs: float = Field(1.0, gt=0)
    batch_size: Count = 16
    micro_batch_size: Count = 4
    max_length: Count = 1024
    too_long: Literal["error", "truncate"] = "error"
    gradient_checkpointing: bool = False
    save_steps: Count = 20
    probe: ProbeSettings | None = None
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()

    @property
    def unused(self) -> list[str]:
        """Settings that were written and that no objective of these reads.

        Where every setting is written out, as in the recipe of a run folder, those that are no default.
        """
        fields = type(self).model_fields
        is_whole = self.model_fields_set == set(fields)
        written = [name for name in fields if name in self.model_fields_set]
        if is_whole:
            written = [name for name in written if getattr(self, name) != fields[name].default]
        return [name for name in written if not self.reads(name)]

    def reads(self, setting: str) -> bool:
        """Return whether an objective of these reads a setting."""
        if setting in ("answers", "num_fewshot"):
            return self.asks_questions
        if setting == "prompt_format" and self.prompt_format == "chat" and self.asks_questions:
            return True
        readers = ("translation",) if setting == "prompt_format" else _READ_BY.get(setting, OBJECTIVES)
        return bool(set(readers) & set(self.objective))

    @property
    def asks_questions(self) -> bool:
        """Whether questions are asked as evaluation does, so that their fields are needed, not only their text."""
        return set(self.objective) != {"translation"} or self.replay > 0

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, value: Any) -> Any:
        preset = value.get("preset") if isinstance(value, dict) else None
        if not isinstance(preset, str) or preset not in PRESETS:
            return value
        own = PRESETS[preset].settings.get("objective")
        written = value.get("objective", own)
        names = list(written) if isinstance(written, dict) else [written]
        if own and names and own not in names and all(name in OBJECTIVES for name in names):
            got = f"got preset {preset} with objective {' + '.join(map(str, names))}"
            raise ValueError(f"{got}, expected {own} in the objective, or another preset")
        return {**PRESETS[preset].settings, **value}

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSettings:
        if self.batch_size % self.micro_batch_size:
            got = f"batch_size {self.batch_size} and micro_batch_size {self.micro_batch_size}"
            raise ValueError(f"got {got}, expected the second to divide the first")
        low, high = self.lora_layers
        if not 0 <= low < high <= 1:
            raise ValueError(f"got lora_layers {low:g}, {high:g}, expected two shares of the depth such as 0.6, 1")
        is_taught = TAUGHT & set(self.objective)
        if self.control == "copied-pairs" and set(self.objective) != {"translation"}:
            raise ValueError(f"got control copied-pairs for {' + '.join(self.objective)}, expected it for translation")
        if self.control not in ("none", "shuffled-pairs", "copied-pairs") and not is_taught:
            raise ValueError(f"got control {self.control} for {' + '.join(self.objective)}, which has no teacher; "
                             "expected shuffled-pairs or none")  # fmt: skip
        if self.method == "full":
            lora_only = {"rslora": self.rslora, "dora": self.dora, "quantization": self.quantization != "none"}
            if wrong := [name for name, given in lora_only.items() if given]:
                raise ValueError(f"got method full with {', '.join(wrong)}, expected method lora")
        return self


@dataclass(frozen=True)
class Preset:
    """Published training settings.

    Attributes:
        settings: keys of `TrainSettings`.
        data: keys of `glotlift.data.settings.DataSettings`.
        seed: of the run, where it is published.
        unpublished: settings that the publication leaves open, and what they are here.
    """

    settings: dict[str, Any]
    data: dict[str, Any]
    seed: int | None
    unpublished: str


PRESETS = {
    "default": Preset({}, {}, None, ""),
    "consistency": Preset(
        {"objective": "consistency", "lora_layers": [0.5, 1.0], "batch_size": 32, "micro_batch_size": 8}, {}, None, "",
    ),
    "contrastive": Preset(
        {"objective": "contrastive", "lora_layers": [0.0, 0.5], "replay": 0.25, "batch_size": 32,
         "micro_batch_size": 8},
        {}, None, "",
    ),
    "steering": Preset({"objective": "steering"}, {}, None, ""),
    "translation": Preset({"objective": "translation"}, {}, None, ""),
    "paper": Preset(
        {
            "objective": "translation", "method": "lora", "rank": 8, "alpha": 16,
            "target_modules": ["q_proj", "v_proj"], "learning_rate": 5e-5, "scheduler": "cosine",
            "warmup_fraction": 0.1, "epochs": 3, "batch_size": 16, "micro_batch_size": 4, "max_length": 2048,
            "too_long": "truncate", "dropout": 0.0, "weight_decay": 0.0,
            "max_grad_norm": 1.0, "prompt_format": "alpaca", "cue": "kept",
        },
        {"validation_fraction": 0.05},
        None,
        "template (alpaca), seed, dropout (0), weight decay (0), gradient norm (1), the pairs of the validation set; "
        "rank and alpha are from a secondary source; fp16 is a choice of `dtype`",
    ),
    "qalign": Preset(
        {
            "objective": "translation", "method": "full", "learning_rate": 2e-5, "epochs": 3, "batch_size": 128,
            "scheduler": "cosine", "warmup_fraction": 0.03, "max_length": 512, "too_long": "truncate",
            "weight_decay": 0.0, "max_grad_norm": 1.0, "prompt_format": "alpaca", "cue": "kept",
        },
        {},
        1234,
        "template (alpaca), weight decay (0), gradient norm (1), micro-batch; bf16 is a choice of `dtype`",
    ),
}  # fmt: skip
"""Name -> preset. What is published of them stands in arXiv 2405.13816 and the repository NJUNLP/QAlign."""


def without_preset(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return written settings less what goes with their preset, so that another preset can take its place: the
    objective, and settings that are as the preset has them.

    Args:
        written: the part `train` of a recipe; every setting written out, as in a run folder, or some.
    """
    name = str(written.get("preset"))
    own = PRESETS.get(name, PRESETS["default"]).settings
    if TrainSettings.model_fields.keys() <= written.keys():  # then it cannot be told from what a person wrote
        own = TrainSettings.model_validate({"preset": name} if name in PRESETS else {}).model_dump(mode="json")
    dropped = {"preset", "objective", *(key for key, value in own.items() if written.get(key) == value)}
    return {key: value for key, value in written.items() if key not in dropped}
