"""Train: the one loop of every training, and what a training is; a method brings recipes, never a loop."""

from mintage.catalog import lazy_attributes

__getattr__, __dir__ = lazy_attributes(
    __name__,
    Recipe="mintage.train.recipe:Recipe",
    Settings="mintage.train.recipe:Settings",
    Trained="mintage.train.loop:Trained",
    train="mintage.train.loop:train",
    LanguageModelTraining="mintage.train.training:LanguageModelTraining",
    Training="mintage.train.training:Training",
    Work="mintage.train.training:Work",
)
