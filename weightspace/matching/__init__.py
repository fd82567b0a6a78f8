"""Align two networks: find the order of one's hidden units that fits the other's."""

from weightspace.matching.alignment import Alignment, Matcher, align
from weightspace.matching.weight_matching import WeightMatching

__all__ = ["Alignment", "Matcher", "WeightMatching", "align"]
