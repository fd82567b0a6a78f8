"""Graphs of parameters: neurons as nodes, weights as edges."""

from weightspace.graph.encoding import ParameterGraph, encode

__all__ = ["ParameterGraph", "encode"]
