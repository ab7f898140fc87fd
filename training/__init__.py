"""What one training is made of: a recipe, its steps, what they compute in, and the folder that keeps the run."""

from training.recipe import Recipe
