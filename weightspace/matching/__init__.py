"""Align two networks: find the order of one's hidden units that fits the other's."""

from weightspace.matching.activation_matching import ActivationMatching
from weightspace.matching.alignment import Alignment, Matcher, align
from weightspace.matching.frank_wolfe import FrankWolfeMatching
from weightspace.matching.procrustes import ProcrustesMatching
from weightspace.matching.straight_through import StraightThroughMatching
from weightspace.matching.weight_matching import WeightMatching

__all__ = [
    "ActivationMatching",
    "Alignment",
    "FrankWolfeMatching",
    "Matcher",
    "ProcrustesMatching",
    "StraightThroughMatching",
    "WeightMatching",
    "align",
]
