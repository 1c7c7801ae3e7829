"""Closed forms of KL(p || q): one function for each pair of families, in files that are named by family."""

from kullback.closed_forms import (  # noqa: F401  (importing a module registers its pairs)
    bounded,
    counts,
    dirichlets,
    finite_counts,
    gammas,
    inverse_gaussian,
    lkj,
    location_scale,
    multivariate,
    normals,
    truncated_normals,
    von_mises,
    wisharts,
)
from kullback.closed_forms.registry import FORMS, Form, closed_form
from kullback.closed_forms.supports import is_contained, is_univariate, support

__all__ = ["FORMS", "Form", "closed_form", "is_contained", "is_univariate", "support"]
