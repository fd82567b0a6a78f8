"""Ways to bound a Lipschitz constant, and `lipschitz`, which runs one and has its result checked."""

from certify.bounders.base import Bounder, Proposal
from certify.bounders.certifying import lipschitz
from certify.bounders.closed_form import ClosedForm
from certify.bounders.descent import Descent
from certify.bounders.lipsdp import LipSDP
from certify.bounders.many import lipschitz_many
from certify.bounders.norm_product import NormProduct
from certify.bounders.splitting import Split

__all__ = [
    "Bounder", "ClosedForm", "Descent", "LipSDP", "NormProduct", "Proposal", "Split", "lipschitz", "lipschitz_many",
]  # fmt: skip
