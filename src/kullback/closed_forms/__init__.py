"""Closed forms of KL(p || q): one function for each pair of families, in files named by family."""

from kullback.closed_forms import (  # noqa: F401  (each registers its pairs)
    bounded,
    counts,
    dirichlets,
    finite_counts,
    gammas,
    inverse_gaussian,
    location_scale,
    multivariate,
    normals,
    von_mises,
    wisharts,
)
from kullback.closed_forms.registry import FORMS, Form, closed_form
from kullback.closed_forms.supports import is_contained, lies_on_the_line, support

__all__ = ["FORMS", "Form", "closed_form", "is_contained", "lies_on_the_line", "support"]
