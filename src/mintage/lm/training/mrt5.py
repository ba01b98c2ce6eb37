"""Train MrT5: from scratch, or from a ByT5 that is there; the controller steers how much is deleted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from mintage.errors import UserError
from mintage.lm.core.deletion import PIController
from mintage.lm.core.seq2seq_tasks import PrefixTask, Seq2SeqTask, SpanTask, VowelTask, judge_rows
from mintage.lm.mrt5 import MrT5, MrT5Config
from mintage.lm.training.byte_training import TextTraining
from mintage.lm.training.mrt5_recipe import Seq2SeqRecipe, SteeredDeletion
from mintage.options import option
from mintage.train import Settings
from mintage.train.training import Work

__all__ = ["MrT5Training"]

SIZES = {"width": 128, "layers": 4, "decoder_layers": 2, "heads": 4}
"""Of a model that is made from scratch."""

_MEASURED = 64  # held-out rows


@dataclass(frozen=True, kw_only=True)
class MrT5Training(TextTraining):
    """Train a ByT5 whose encoder deletes bytes.

    Tasks: spans (write what was taken out of a window of text, as ByT5 was trained), prefix (write the second half of a
    window after reading the first), vowels (write random letters without their vowels; no text is needed).
    """

    name: ClassVar[str] = "mrt5"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train mrt5 notes/ --steps 2000 -o my-mrt5",
        "mintage train mrt5 notes/ --model byt5-small/ --window 1024 --lr 1e-4 --warmup 0 --steps 5000 -o mine",
        "mintage train mrt5 --task vowels --weight 1e-3 --window 64 -o vowels",
    )
    after: ClassVar[str] = "mintage generate 'what is read' --model FOLDER --raw"

    task: Literal["spans", "prefix", "vowels"] = option("spans", "What is learnt.")
    model: str = option("", "Folder of a T5, ByT5 or MrT5 to go on from; none: from scratch.")
    gate: Literal["scaled_sigmoid", "random", "fixed", "none"] = option("scaled_sigmoid", "What deletes; its rivals.")
    deletion: float = option(0.5, "Share of the bytes to delete.", above=0, below=1)
    weight: float | None = option(None, "A weight of the gate loss that stays, in place of the controller.", least=0)
    kp: float = option(0.5, "Proportional gain of the controller.", least=0)
    ki: float = option(1e-5, "Integral gain of the controller.", least=0)
    delay: int = option(0, "Steps before the gate loss counts.", least=0)
    gate_bias: float = option(1.0, "Of a fresh gate; higher ones begin by keeping, and disturb a trained model less.")
    gate_layer: int | None = option(None, "Block behind the gate; default a quarter up the encoder.", least=1)
    hard: float = option(
        0.25, "Share of the batches that are deleted hard; the paper's 0 takes long training.", least=0, most=1
    )
    score_weight: float | None = option(None, "Of high scores; default 0.5 from scratch, else 0.", least=0)
    width: int | None = option(None, "Of the states, from scratch; default 128.", least=4)
    layers: int | None = option(None, "Blocks of the encoder, from scratch; default 4.", least=2)
    decoder_layers: int | None = option(None, "Blocks of the decoder, from scratch; default 2.", least=1)
    heads: int | None = option(None, "Of attention, from scratch; they divide the width; default 4.", least=1)
    rows: int = option(16, "Windows, or rows of letters, per step.", least=1)
    window: int = option(256, "Bytes of a window, or ids of a row of letters.", least=8)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in SIZES:
            if self.model and getattr(self, name) is not None:
                raise UserError(f"{name}={getattr(self, name)}, but {self.model} has its own sizes; leave one out")
        if self.task == "vowels" and self.texts:
            raise UserError(f"the vowels task draws letters and reads no text; leave out {self.texts[0]}")
        if self.delay >= self.steps and self.gate == "scaled_sigmoid":
            raise UserError(f"delay={self.delay} leaves none of the {self.steps} steps for the gate; pass less")

    def learn(self, work: Work) -> MrT5:
        """Read the texts, train, and measure on rows held out."""
        return self.fit(self.lesson(), work)

    def lesson(self) -> Seq2SeqTask:
        """Make the task."""
        if self.task == "vowels":
            return VowelTask(self.window, grow=0 if self.model else self.steps * self.rows // 2)
        return (SpanTask if self.task == "spans" else PrefixTask)(self.corpus())

    def fit(self, task: Seq2SeqTask, work: Work) -> MrT5:
        """Train on a task that is there."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed % 2**63)
            model = self.build()
        learnt = self.gate == "scaled_sigmoid"
        controller = PIController(self.deletion, self.kp, self.ki) if learnt and self.weight is None else None
        recipe = Seq2SeqRecipe(
            SteeredDeletion(model, controller, self.weight or 0.0, self.delay), task, self.rows, self.seed
        )
        self.train(recipe, work)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = judge_rows(model.eval(), task.held_out(_MEASURED, self.rows))
        model.config.held_out = {
            "bits_per_byte": float(found.bits.sum() / found.size.sum()),
            "rows_right": float(found.right.mean()),
            "deleted": float(found.deleted.sum() / found.read.sum()),
        }
        return model

    def loop_settings(self) -> Settings:
        """See `TextTraining.loop_settings`."""
        return replace(super().loop_settings(), weight_decay=0.01)

    def summary(self, made: MrT5) -> str:
        """Say what rows held out cost, under hard deletion."""
        found = made.config.held_out
        return (
            f"{found['bits_per_byte']:.3f} bits per byte, {found['rows_right']:.1%} of the rows right, "
            f"{found['deleted']:.1%} of the bytes deleted, on rows held out"
        )

    def build(self) -> MrT5:
        """Make the model, or load the one to go on from."""
        scratch = not self.model
        beta = (0.5 if scratch and self.gate != "none" else 0.0) if self.score_weight is None else self.score_weight
        settings: dict[str, Any] = {
            "deletion_type": self.gate,
            "gate_bias": self.gate_bias,
            "random_deletion_probability": self.deletion,
            "fixed_deletion_amount": self.deletion,
            "hard_delete_train_prob": self.hard,
            "scores_loss_coeff": beta,
        }
        if self.gate_layer is not None:
            settings["delete_gate_layer"] = self.gate_layer
        if not scratch:
            return MrT5.from_pretrained(self.model, **settings)
        width, layers, decoder_layers, heads = (getattr(self, name) or size for name, size in SIZES.items())
        if width % heads:
            raise UserError(f"heads={heads} does not divide width={width}; pass e.g. heads={SIZES['heads']}")
        sizes = {"vocab_size": 384, "d_model": width, "d_kv": width // heads, "num_heads": heads, "d_ff": 2 * width}
        sizes |= {"num_layers": layers, "num_decoder_layers": decoder_layers, "feed_forward_proj": "gated-gelu"}
        settings.setdefault("delete_gate_layer", max(layers // 4, 1))
        return MrT5(MrT5Config(**sizes, dropout_rate=0.0, **settings))
