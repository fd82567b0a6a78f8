"""Graphs of parameters: neurons as nodes, weights as edges."""

from weightspace.graph.encoding import describe_structure, encode
from weightspace.graph.neural_graph_net import NeuralGraphNet
from weightspace.graph.neural_graph_transformer import NeuralGraphTransformer
from weightspace.graph.parameter_graph import ParameterGraph
from weightspace.graph.parameter_map import GraphParameterMap, widen_vocabulary
from weightspace.graph.probe_features import ProbeFeatures
from weightspace.graph.structure import GraphStructure
from weightspace.graph.union import batch_graphs
from weightspace.graph.vocabulary import GraphVocabulary, describe_graphs

__all__ = [
    "GraphParameterMap",
    "GraphStructure",
    "GraphVocabulary",
    "NeuralGraphNet",
    "NeuralGraphTransformer",
    "ParameterGraph",
    "ProbeFeatures",
    "batch_graphs",
    "describe_graphs",
    "describe_structure",
    "encode",
    "widen_vocabulary",
]
