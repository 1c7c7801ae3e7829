"""Fits of a family to a target: the member that minimises KL(target || member) or KL(member || target)."""

from kullback.fit.alpha import fit_alpha
from kullback.fit.forward import fit_forward
from kullback.fit.result import Fit, Minimum, Step
from kullback.fit.reverse import fit_reverse
from kullback.fit.tempered import fit_tempered

__all__ = ["Fit", "Minimum", "Step", "fit_alpha", "fit_forward", "fit_reverse", "fit_tempered"]
