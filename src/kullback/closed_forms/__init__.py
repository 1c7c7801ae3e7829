"""One function for each pair of families whose KL has a closed form, by family."""

from kullback.closed_forms import (  # noqa: F401  (each registers its pairs)
    circles,
    counts,
    dirichlets,
    finite,
    gammas,
    intervals,
    locations,
    multivariate,
    normals,
    others,
    wisharts,
)
from kullback.closed_forms._registry import FORMS, Form, closed_form
from kullback.closed_forms._supports import is_contained, lies_on_the_line, support

__all__ = ["FORMS", "Form", "closed_form", "is_contained", "lies_on_the_line", "support"]
