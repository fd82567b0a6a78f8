"""How the numbers of the report's own sections are computed; the sections of other packages bring theirs."""

from __future__ import annotations

from weightspace.report.content import Method

HASH = Method(
    "hash", "Hash of a network",
    "Two files with the same hash compute with the same operations and the same bits, whatever the names.",
    "SHA-256(operations, attributes, shapes, dtypes, bytes of the weights)",
    "weightspace.Network.hash", "", "exact",
)  # fmt: skip
COUNTS = Method(
    "counts", "Counts",
    "Entries that are NaN or infinite; rows of a weight that are zero throughout (dead units: they put out their bias, "
    "whatever comes in); rows that repeat an earlier one. A storage under two names counts once.",
    "dead = #{i : W[i, :] = 0},  repeated = #{i : W[i, :] = W[j, :] ≠ 0 for some j < i}",
    "weightspace.inspect", "", "exact",
)  # fmt: skip
NORM = Method(
    "norm", "Norm of a tensor",
    "The Frobenius norm over the finite entries, in double precision.",
    "‖W‖_F = (Σ W[i, j]²)^½",
    "weightspace.inspect", "", "up to rounding",
)  # fmt: skip
SPECTRUM = Method(
    "spectrum", "Singular values",
    "The matrix of a tensor has its first axis as rows and all others as columns. The spectral norm is the most it "
    "stretches a vector; the stable rank says over how many directions its norm is spread. Beyond 4,096 rows and "
    "columns the spectral norm is estimated from below and marked ~.",
    "W = U diag(σ) Vᵀ,  spectral norm = σ₁,  stable rank = ‖W‖_F² / σ₁²",
    "weightspace.inspect", "", "up to rounding",
)  # fmt: skip
ALPHA = Method(
    "alpha", "Alpha and KS",
    "A power law fitted to the largest eigenvalues of WᵀW, and the Kolmogorov-Smirnov distance between the two. Alpha "
    "is given from 20 eigenvalues on and unreliable below 50. Reading it as over-trained (below 2) or under-trained "
    "(above 6) is a rule of thumb of WeightWatcher, no theorem.",
    "density(λ) ∝ λ^(−alpha) for λ ≥ λ_min,  alpha = 1 + n / Σ ln(λᵢ / λ_min)",
    "weightspace.inspect",
    "Clauset, Shalizi, Newman, Power-law distributions in empirical data (2009); Martin, Mahoney, Implicit "
    "self-regularization in deep neural networks (2021)", "estimated",
)  # fmt: skip
ALIGNMENT = Method(
    "alignment", "Distance and alignment",
    "The neurons of the second network are put into the order that brings its weights as close to the first as the "
    "search finds; its function stays the same. The distance after alignment is an upper estimate of the smallest one.",
    "‖A − B‖_F before,  min over permutations P of ‖A − P B‖_F after",
    "weightspace.align",
    "Ainsworth, Hayase, Srinivasa, Git Re-Basin (2023); Crisostomi et al., C²M³ (2024)", "found by search",
)  # fmt: skip
VERDICT = Method(
    "verdict", "Verdict",
    "Identical weights: equal hashes. The same network in another neuron order: after alignment the distance is below "
    "a millionth of the distance before, or zero. Different networks: their canonical hashes, which no neuron order "
    "changes, differ. Not settled: alignment leaves a distance and the weights are too symmetric for a canonical hash.",
    "same ⇔ ‖A − P B‖_F ≤ 10⁻⁶ ‖A − B‖_F for the P found",
    "weightspace.canonical_hash", "", "up to rounding",
)  # fmt: skip
BARRIER = Method(
    "barrier", "Loss barrier",
    "How far the loss on the straight line between two networks rises above the line between its ends, over 25 points. "
    "0 says that it never does. The loss is the cross entropy on the data given; without data that fits, the mean "
    "square distance of the outputs from those of the nearer end on 512 standard normal inputs, relative to the mean "
    "square of the outputs: a weak stand-in for a loss.",
    "max over t of  L((1 − t) A + t B) − ((1 − t) L(A) + t L(B))",
    "weightspace.barrier",
    "Frankle, Dziugaite, Roy, Carbin, Linear mode connectivity and the lottery ticket hypothesis (2020)", "measured",
)  # fmt: skip
DISTANCES = Method(
    "distances", "Distances and families",
    "All networks of one architecture in one neuron order, as far as they are related. Relative distance 0: the same "
    "weights; networks that have nothing in common have about √2 before alignment. Between families the distances are "
    "upper estimates. A family is what the weights suggest to be of common origin.",
    "d(A, B) = ‖A − P B‖_F,  relative to ((‖A‖² + ‖B‖²) / 2)^½",
    "weightspace.compare", "Ainsworth, Hayase, Srinivasa, Git Re-Basin (2023)", "found by search",
)  # fmt: skip
CANONICAL = Method(
    "canonical-hash", "Hash modulo neuron order",
    "The hash of a network whose neurons were put into an order that depends on the weights alone: equal for all "
    "reorderings of one network, different for all others.",
    "SHA-256(canonical form),  canonical(P A) = canonical(A) for all permutations P",
    "weightspace.canonical_hash", "McKay, Piperno, Practical graph isomorphism, II (2014)", "exact",
)  # fmt: skip
LINEAGE = Method(
    "lineage", "Descent",
    "A tree of training steps: parents and children share weights that training left untouched, or are close. A guess "
    "from the weights, which the share of agreeing edges qualifies; a missing ancestor cannot be told.",
    "spanning tree of least  share of weights changed + 0.004 d(A, B) / max d",
    "weightspace.lineage", "Horwitz, Shul, Hoshen, Unsupervised model tree heritage recovery (2024)", "estimated",
)  # fmt: skip
GRAPH = Method(
    "graph", "Graph of neurons and weights",
    "Neurons are nodes, with their biases; weights are edges. Drawn are at most 1,500 edges, those that are largest "
    "within their layer; the strength of a line is relative to its layer.",
    "edge (j → i) = W[i, j],  node i = b[i]",
    "weightspace.encode",
    "Kofinas et al., Graph neural networks for learning equivariant representations of neural networks (2024)", "exact",
)  # fmt: skip

TENSORS = (COUNTS, NORM, SPECTRUM, ALPHA)
PAIRS = (ALIGNMENT, VERDICT, BARRIER)
SIMILARITY = (DISTANCES, CANONICAL, LINEAGE)
