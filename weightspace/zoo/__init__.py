"""Zoos of networks: implicit representations of images, small classifiers, their storage and augmentation."""

from weightspace.zoo.augmentation import (
    Augmentation,
    add_noise,
    drop_weights,
    flip_sine_units,
    permute_zoo,
    scale_relu_units,
)
from weightspace.zoo.classifier_training import HyperparameterRanges, train_classifiers
from weightspace.zoo.classifiers import ConvolutionalClassifier, PerceptronClassifier
from weightspace.zoo.collection import WeightZoo, concatenate_zoos
from weightspace.zoo.editors import WeightEditor
from weightspace.zoo.implicit_representations import fit_inrs, render_inrs
from weightspace.zoo.learned_optimizer import LearnedOptimizer, OptimizerState
from weightspace.zoo.perceptrons import run_perceptrons
from weightspace.zoo.readers import FlatReader, GraphReader, WeightSpaceReader
from weightspace.zoo.sine_units import canonicalize_sine_units
from weightspace.zoo.siren import Siren, pixel_grid
from weightspace.zoo.standardization import Standardization, standardize
from weightspace.zoo.storage import ZooWriter, stream_zoo
from weightspace.zoo.training import TrainingRun, run_training
from weightspace.zoo.weight_statistics import WeightStatistics, summarize_weights

__all__ = [
    "Augmentation",
    "ConvolutionalClassifier",
    "FlatReader",
    "GraphReader",
    "HyperparameterRanges",
    "LearnedOptimizer",
    "OptimizerState",
    "PerceptronClassifier",
    "Siren",
    "Standardization",
    "TrainingRun",
    "WeightEditor",
    "WeightSpaceReader",
    "WeightStatistics",
    "WeightZoo",
    "ZooWriter",
    "add_noise",
    "canonicalize_sine_units",
    "concatenate_zoos",
    "drop_weights",
    "fit_inrs",
    "flip_sine_units",
    "permute_zoo",
    "pixel_grid",
    "render_inrs",
    "run_perceptrons",
    "run_training",
    "scale_relu_units",
    "standardize",
    "stream_zoo",
    "summarize_weights",
    "train_classifiers",
]
