"""What a GAN is: one public module is one family of GANs, found by its file name."""

from models._gan import STRUCTURE, Gan, Param, Preset, Value
from models._registry import UnknownModelError, build, names, preset, problem

__all__ = [
    "STRUCTURE",
    "Gan",
    "Param",
    "Preset",
    "UnknownModelError",
    "Value",
    "build",
    "names",
    "preset",
    "problem",
]
