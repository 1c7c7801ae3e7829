"""The member of a family nearest to a target, by KL(target || member) or by KL(member || target)."""

from kullback.fit.alpha import fit_alpha
from kullback.fit.forward import fit_forward
from kullback.fit.result import Fit, Minimum, Step
from kullback.fit.reverse import fit_reverse
from kullback.fit.tempered import fit_tempered

__all__ = ["Fit", "Minimum", "Step", "fit_alpha", "fit_forward", "fit_reverse", "fit_tempered"]
