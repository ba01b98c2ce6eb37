"""MAGNET: bytes in segments that are learnt, with a boundary predictor and a rate for every script (arXiv 2407.08818).

UTF-8 spends one byte on a Latin letter and two or three on others, so one rate for all would cut other scripts finer.
Here every script has a predictor of where segments end, and a prior: the share of its bytes that should end one, best
one over its bytes per word. The loss is that of the next byte plus each present script's binomial prior loss per byte.

Deviations: a byte's predictor is that of the *last complete letter* up to it, not of the script that most of the row
has, so that rows may mix scripts and no byte depends on later ones (on text of one script it is the same); blocks are
Llama's, pre-norm with rotary positions, instead of post-norm with relative attention; segments end where that is
likelier than not when the model is not training, where the authors draw.

Not here: stacks, pooling and writing (`mintage.lm.core.segment_model`), predictor and prior
(`mintage.lm.core.boundaries`), scripts of letters (`mintage.lm.core.scripts`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mintage.errors import Notice, UserError
from mintage.lm.contract import register
from mintage.lm.core.boundaries import BoundaryPredictor, binomial_nats, check_prior
from mintage.lm.core.reading import seeded
from mintage.lm.core.scripts import is_script, running_letters, script_of
from mintage.lm.core.segment_model import Ends, SegmentConfig, SegmentModel

__all__ = ["ANY", "Magnet", "MagnetConfig"]

ANY = "any"
"""The name of a predictor that reads every script that has none of its own."""


class MagnetConfig(SegmentConfig):
    """Sizes of a MAGNET, and its scripts.

    Parameters
    ----------
    scripts
        Unicode scripts (or `ANY`) and the share of their bytes that should end segments, e.g. ``{"Latin": 0.2}``; the
        first also reads what comes before any letter.
    hidden
        Width inside the predictors; 0 takes the feed-forward's, 8/3 of the width.
    tau
        Temperature of the relaxed Bernoulli variables.

    Raises
    ------
    UserError
        There is no script, Unicode has none of a name, or a share is outside (0, 1).
    """

    model_type = "mintage-magnet"
    sizes: ClassVar = {**SegmentConfig.sizes, "hidden": 0}
    others: ClassVar = ("scripts", "tau")

    scripts: Any = (("Latin", 0.2), ("Cyrillic", 0.1))
    hidden, tau = 0, 0.5

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        pairs = self.scripts.items() if isinstance(self.scripts, Mapping) else self.scripts
        self.scripts = [[name, share] for name, share in pairs]  # a list: files sort the keys of a mapping
        names = [name for name, _ in self.scripts]
        if not names or len(set(names)) < len(names):
            raise UserError(f"scripts are {', '.join(names) or 'none'}; name at least one, each once")
        for name, share in self.scripts:
            if name != ANY and not is_script(name):
                raise UserError(f"Unicode has no script {name!r}; e.g. Latin, Cyrillic, Devanagari, or {ANY!r}")
            check_prior(share)


class Magnet(SegmentModel):
    """A byte language model over learnt segments; one predictor named `ANY` makes it dynamic token pooling."""

    config_class = MagnetConfig

    def __init__(self, config: MagnetConfig) -> None:
        super().__init__(config)
        hidden = config.hidden or -(-8 * config.width // 24) * 8
        self.scripts = [name for name, _ in config.scripts]
        self.predictors = nn.ModuleList(
            BoundaryPredictor(config.width, hidden, share, config.tau) for _, share in config.scripts
        )
        self._told: set[str] = set()
        self.post_init()

    @classmethod
    def tiny(cls) -> Magnet:
        """See `ByteLanguageModel.tiny`."""
        scripts = {"Latin": 0.2, "Cyrillic": 0.1, "Han": 0.3}
        return seeded(cls, MagnetConfig(scripts=scripts, width=16, byte_layers=1, layers=2, heads=2))

    def predictor_of(
        self, ids: Int[Tensor, "batch bytes"], memory: dict[str, Any] | None = None
    ) -> Int[Tensor, "batch bytes"]:
        """Return the number of the predictor that reads each byte.

        A script without one is read by `ANY`'s, else by the first, which is told once.
        """
        memory = {} if memory is None else memory
        before = memory.get("bytes", ids[:, :0])  # a letter may be complete only with the bytes that come now
        data = torch.cat([before, ids], 1)
        letters = running_letters(data.to("cpu", torch.uint8).numpy())
        codes, where = np.unique(letters, return_inverse=True)
        numbers = np.array([self._number(int(code)) for code in codes], np.int64)[where.reshape(letters.shape)]
        numbers = np.where(letters < 0, memory.get("number", 0), numbers)[:, before.shape[1] :]
        if numbers.shape[1]:
            memory["bytes"], memory["number"] = data[:, -3:], numbers[:, -1:]
        return torch.from_numpy(numbers).to(ids.device)

    def _number(self, letter: int) -> int:
        script = script_of(letter) if letter >= 0 else self.scripts[0]
        if script in self.scripts:
            return self.scripts.index(script)
        if ANY in self.scripts:
            return self.scripts.index(ANY)
        if script not in self._told:
            self._told.add(script)
            told = f"no boundary predictor for {script}; read by that for {self.scripts[0]} (train with {script}, too)"
            warnings.warn(told, Notice, stacklevel=2)
        return 0

    def ends(
        self,
        hidden: Float[Tensor, "batch bytes width"],
        ids: Int[Tensor, "batch bytes"],
        seen: Bool[Tensor, "batch bytes"],
        memory: dict[str, Any] | None = None,
    ) -> Ends:
        """See `SegmentModel.ends`; predictors of scripts that are not there are not run."""
        read_by = self.predictor_of(torch.where(seen, ids, 0), memory)
        hard = torch.zeros(ids.shape, device=ids.device)
        loss: Tensor | float = 0.0
        told = {}
        for number, name in enumerate(self.scripts):
            mine = (read_by == number) & seen
            if not mine.any():
                continue
            predictor: Any = self.predictors[number]
            chosen = predictor(hidden[mine])[1]
            hard = hard.masked_scatter(mine, chosen)
            own = torch.zeros(ids.shape, device=ids.device).masked_scatter(mine, chosen)
            loss = loss + binomial_nats(own, predictor.prior, mine).sum() / mine.sum()
            told[f"bytes per segment, {name}"] = float(mine.sum()) / max(float(chosen.detach().sum()), 1.0)
        return Ends(hard, loss, told)

    def flops(self, input_ids: Int[Tensor, "batch bytes"]) -> float:
        """See `ByteLanguageModel.flops`; every byte asks one predictor."""
        weights = sum(p.numel() for p in self.predictors[0].parameters() if p.ndim > 1)
        return super().flops(input_ids) + 2 * weights


register(MagnetConfig, Magnet)
