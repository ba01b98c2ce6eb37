"""Train connectivity predictors, then tune the transformer under their masks (arXiv 2303.13755, section 3.3).

Not here: what both phases learn (`connectivity`, `sparse_tuning`), the loop (`mintage.train`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from mintage.options import option
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.sparsifiner import Connectivity, Sparsifiner
from mintage.reduce.training.connectivity import Predictors, Reconstruction
from mintage.reduce.training.images import ImageTraining, TrainingImages, on_device
from mintage.reduce.training.sparse_tuning import SparseStudent, Tuning
from mintage.train.training import Work
from mintage.weights import Imprint

__all__ = ["SparsifinerTraining"]


@dataclass(frozen=True, kw_only=True)
class SparsifinerTraining(ImageTraining):
    """Train predictors of sparse attention, then the transformer under their masks."""

    name: ClassVar[str] = "sparsifiner"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train sparsifiner --out sparse.safetensors",
        "mintage train sparsifiner --model ./my-vit --images photos/ --keep-rate 0.1",
    )
    after: ClassVar[str] = "mintage bench reduce sparsifiner:weights=sparse.safetensors"

    keep_rate: float = option(0.25, "Share of the keys that a patch reads in phase 2.", above=0, most=1)
    prune: float = option(1.0, "Share of the patches that stay at layers 3, 6 and 9; 1 is all.", above=0, most=1)
    steps: int = option(300, "Steps of phase 1: predictors learn the attention.", least=1)
    lr: float = option(1e-2, "Peak learning rate of phase 1; cosine to two thirds of it, as the authors'.", above=0)
    tuning_steps: int = option(
        200, "Steps of phase 2: the transformer learns under the masks; 0 leaves it as it is.", least=0
    )
    tuning_lr: float = option(3e-4, "Peak learning rate of phase 2; cosine to a fortieth of it.", above=0)
    weight_decay: float = option(0.05, "Of both phases.", least=0)
    reduce_tokens: int = option(6, "Tokens per rank of a predictor.", least=1)
    reduce_channels: int = option(2, "Channels of a head per channel of a predictor.", least=1)
    coef_topk: int = option(8, "Coefficients that a predictor keeps per query.", least=0)
    cut: int = option(0, "Side of the square that is cut out of an image; 0 for none.", least=0)

    def teach(self, images: TrainingImages, work: Work) -> Connectivity:
        """Train both phases.

        Raises
        ------
        UserError
            The folder holds another run.
        """
        teacher = on_device(images.classifier.model, self.device)
        options = {name: getattr(self, name) for name in ("reduce_tokens", "reduce_channels", "coef_topk")}
        made = Connectivity.new(adapter_for(teacher).anatomy(), seed=self.seed, **options)
        reducer = Sparsifiner(keep_rate=self.keep_rate, prune=self.prune, weights=made)
        batches = images.batches(self.batch_rows, cut=self.cut, seed=self.seed)
        first = self.settings(steps=self.steps, lr=self.lr, final_lr=2 / 3, weight_decay=self.weight_decay)
        work.stage("predictors", Reconstruction(Predictors(teacher, made), batches), first)
        if self.tuning_steps:
            model = copy.deepcopy(teacher)
            second = {"steps": self.tuning_steps, "lr": self.tuning_lr, "final_lr": 1 / 40}
            recipe = Tuning(SparseStudent(model, reducer), teacher, batches)
            work.stage("backbone", recipe, self.settings(**second, weight_decay=self.weight_decay))
            made.backbone = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
        made.imprint = Imprint.of(images.classifier.model)
        made.as_saved()
        made.notes = self.tested(reducer, images, work)
        return made
