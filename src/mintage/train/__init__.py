"""Train: the one loop that every training method runs through; a method brings a `Recipe`, never a loop."""

from mintage.train.loop import Trained, train
from mintage.train.recipe import Recipe, Settings

__all__ = ["Recipe", "Settings", "Trained", "train"]
