"""Step `mix`: mix several instruction data sets into one, split into train and validation."""

from __future__ import annotations

from pydantic import BaseModel

from retune import models
from retune.data import mixing
from retune.study import Data, Model, Study
from retune.workspace import folders


class Recipe(BaseModel):
    """Everything that determines the mixed data: the argument, and so the cache key, of the pipeline's first step.

    The name of `folder` has a digest of the source files' content, so that changed data is mixed again.
    """

    data: Data
    model: Model
    seed: int
    folder: str


def recipe(study: Study) -> Recipe:
    """Return the recipe of a study."""
    return Recipe(data=study.data, model=study.model, seed=study.seed, folder=folders.data_folder(study))


def mix(recipe: Recipe) -> mixing.MixRecord:
    """Mix the data into the recipe's folder, unless that was done before."""
    return mixing.mix(recipe.data, recipe.seed, models.locate(recipe.model), recipe.folder)
