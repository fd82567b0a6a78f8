"""Ways to bound a Lipschitz constant, and `lipschitz`, which runs one and has its result checked."""

from certify.bounders.base import Bounder, Proposal
from certify.bounders.certifying import lipschitz
from certify.bounders.closed_form import ClosedForm
from certify.bounders.lipsdp import LipSDP
from certify.bounders.many import lipschitz_many
from certify.bounders.norm_product import NormProduct

__all__ = ["Bounder", "ClosedForm", "LipSDP", "NormProduct", "Proposal", "lipschitz", "lipschitz_many"]
