"""What each setting of a quantization costs, without writing a folder."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..conversion.plan import Converted, Plan, make_plan
from ..conversion.recipes import RECIPES, Request
from ..loading import model_of
from ..models.llama import Model
from ..weights import Weights, examine


@dataclass(frozen=True)
class Setting:
    """One way to pack a model.

    Attributes:
        name: as ``Request.parse`` reads it.
        plan: of the conversion; nothing is read yet.
    """

    name: str
    plan: Plan

    @property
    def kind(self) -> str:
        """What it is drawn as: affine, recipe, float formats, or mixed (overrides)."""
        if "," in self.name:
            return "mixed"
        first = self.name.partition(":")[0]
        if first in RECIPES:
            return "recipe"
        is_affine = first == "affine" or first.isdecimal()
        return "affine" if is_affine else "float formats"

    def load(self) -> Model:
        """The model that a conversion would write, bit for bit, as it is loaded."""
        return model_of(examine(Converted(self.plan)))


def default_settings(weights: Weights) -> list[str]:
    """Affine formats, mlx-lm's recipes and the float formats.

    In groups of 64, or of 32 where 64 does not divide all inputs.
    """
    inputs = [weights.shapes[f"{m}.weight"][-1] for m in weights.modules()]
    size = 32 if any(K % 64 for K in inputs) else 64
    affine = [f"{bits}:{size}" for bits in (8, 6, 5, 4, 3, 2)]
    recipes = [name if size == 64 else f"{name}:{size}" for name in reversed(RECIPES)]
    return [*affine, *recipes, "mxfp8", "nvfp4", "mxfp4"]


def plan_settings(weights: Weights, names: Sequence[str]) -> list[Setting]:
    """Plan every setting, so that a wrong one is known before any is measured.

    Raises:
        ValueError: one cannot be read, or does not fit the model; it is named.
    """
    found = []
    for name in names:
        try:
            found.append(Setting(name, make_plan(weights, Request.parse(name))))
        except ValueError as error:
            raise ValueError(f"--settings {name!r}: {error}") from error
    return found
