"""KL between distributions of correlation matrices."""

from array_api_compat import device

from kullback import families as f
from kullback.closed_forms.dirichlets import kl_beta_beta
from kullback.closed_forms.finite_counts import MAX_TERMS
from kullback.closed_forms.registry import FORMS, evaluate_form
from kullback.errors import NoClosedFormError, ShapeError
from kullback.families.base import with_parameters
from kullback.numerics.arrays import Array, as_floats, cast


def kl_lkj_lkj(p: f.LKJ, q: f.LKJ) -> Array:
    """KL(P || Q) for P = LKJ(n, c1) and Q = LKJ(n, c2) of n x n correlation matrices.

    sum_k (n - k) KL(Beta(a_k, a_k) || Beta(b_k, b_k)) for k = 1 ... n - 1, with a_k = c1 + (n - 1 - k)/2 and
    b_k = c2 + (n - 1 - k)/2. The matrix is an invertible function of its partial correlations along a vine, which are
    independent; (1 + z)/2 for each of the n - k partial correlations z of order k - 1 has a beta distribution.
    """
    size, other = int(p.dim), int(q.dim)
    if size != other:
        raise ShapeError(f"expected p and q to have the same number of rows, got dim={size} and dim={other}")
    if size > MAX_TERMS:
        raise NoClosedFormError(
            f"expected LKJ distributions of at most {MAX_TERMS:.0f} rows, because their KL is a sum with a term for "
            f"each row, got dim={p.dim:.15g}"
        )
    xp, [first, second], dtype = as_floats(p.concentration, q.concentration)
    order = xp.arange(1, size, dtype=first.dtype, device=device(first))
    shapes = [concentration[..., None] + (size - 1 - order) / 2 for concentration in (first, second)]
    betas = (with_parameters(f.Beta, {"concentration1": c, "concentration0": c}) for c in shapes)
    return cast(xp, xp.sum((size - order) * evaluate_form(kl_beta_beta, *betas), axis=-1), dtype)


FORMS[f.LKJ, f.LKJ] = kl_lkj_lkj
