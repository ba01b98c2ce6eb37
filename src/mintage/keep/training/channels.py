"""A calibration of double-sparsity as data: its fields are the options of ``mintage calibrate``.

Not here: how channels are scored (`mintage.keep.core.channels`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mintage.data import Corpus, texts
from mintage.errors import UserError
from mintage.keep.core.channels import ChannelOrder, ChannelRule, calibrate_channels
from mintage.models import EMBEDDED, CausalLM, load_causal_lm
from mintage.options import DTYPES, Options, option
from mintage.progress import Note, Progress, silent, unheard

__all__ = ["ChannelCalibration"]


@dataclass(frozen=True, kw_only=True)
class ChannelCalibration(Options):
    """Calibrate double-sparsity for a model: score the channels of its keys on a text.

    SmolLM2-135M needs none, its calibration is shipped. The file belongs to the model it was made with; another one's
    is refused.

    [dim]Examples[/dim]

      mintage calibrate --text german.txt --blocks 2 --block-tokens 64

      mintage calibrate --model ./my-llama --text articles/ --rule q -o my-llama.safetensors

    Next: [bold]mintage generate "Hello" --keep double-sparsity:channels=channels.safetensors[/bold]
    """

    text: tuple[str, ...] = option(
        (), "Text files or folders to calibrate on, may be repeated; default: WikiText-2.", repeat=True
    )
    model: str = option(EMBEDDED, "smollm2 (embedded), a folder, or a hub id.")
    rule: ChannelRule = option("qk", "Score of a channel: qk (after rotation), q or k (before it).")
    blocks: int = option(256, "Blocks of text, fewer where the text ends.", least=1)
    block_tokens: int = option(512, "Tokens per block.", least=2)
    dtype: str = option("auto", DTYPES)
    device: str = option("cpu", "cpu, cuda, ...")

    def run(self, *, progress: Progress = silent, note: Note = unheard) -> ChannelOrder:
        """Read and score.

        Raises
        ------
        UserError
            The text has no block of tokens, or the model cannot be served.
        """
        lm = load_causal_lm(self.model, dtype=self.dtype, device=self.device, note=note)
        source = Corpus(*self.text) if self.text else texts("wikitext2", "train")
        return calibrate_channels(
            lm.model,
            self._blocks(lm, source),
            self.rule,
            progress=lambda done: progress("calibrating", done, self.blocks),
        )

    def _blocks(self, lm: CausalLM, source: Iterable[str]) -> Iterator[Tensor]:
        """Cut a stream of texts into blocks of tokens, [1, block_tokens]."""
        number, rest = 0, []
        for text in source:
            rest += lm.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
            while len(rest) >= self.block_tokens:
                yield torch.tensor([rest[: self.block_tokens]], device=lm.model.device)
                rest = rest[self.block_tokens :]
                number += 1
                if number == self.blocks:
                    return
        if not number:
            raise UserError(
                f"the text has {len(rest)} tokens, less than a block; pass more, or --block-tokens {len(rest)}"
            )
