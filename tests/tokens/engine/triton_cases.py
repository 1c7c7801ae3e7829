"""Compares the Triton kernels, run by Triton's interpreter on a CPU, with PyTorch's operations in float64.

TRITON_INTERPRET=1 python triton_cases.py
"""

import itertools
import math

import torch

from kullback.tokens.engine import torch_rows, triton_rows


def case(vocabulary, scale, *, finite=False):
    generator = torch.Generator().manual_seed(vocabulary)
    p = 3 * torch.randn(5, vocabulary, generator=generator)
    q = p + scale * torch.randn(5, vocabulary, generator=generator)
    if (
        vocabulary > 2 and not finite
    ):  # tokens that are impossible under both, under p and under q, and a row of large logits
        p[0, 0] = q[0, 0] = p[1, 1] = q[2, 2] = -math.inf
        p[3], q[3] = 10 * p[3], 10 * q[3]
    return p, q


def compare(vocabulary, scale, *, finite=False):
    p, q = case(vocabulary, scale, finite=finite)
    assert triton_rows.applies(p, q)
    tops = [torch_rows.normalizers(z) for z in (p, q)]
    torch.testing.assert_close(triton_rows.normalizers(p), tops[0], rtol=1e-6, atol=1e-6)
    given = torch.stack([c for top in tops for c in (top[:, 0], top[:, 0] + top[:, 1])], dim=1)
    for middles in (False, True):
        got = triton_rows.sums(p, q, given, middles=middles)
        expected = torch_rows.sums(p.double(), q.double(), given, middles=middles)
        torch.testing.assert_close(got, expected, rtol=3e-5, atol=1e-5)
    coefficients = [torch.randn(5, 7, dtype=torch.float64) for _ in range(2)]
    got, expected = [p.clone(), q.clone()], [p.double(), q.double()]
    triton_rows.gradients(*got, given, *coefficients)
    torch_rows.gradients(*expected, given, *coefficients)
    for narrow, wide in zip(got, expected, strict=True):
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-5, equal_nan=True)
    # The same with the difference of the logits in place of the second row.
    if p.isfinite().all() and q.isfinite().all():
        change = q - p
        torch.testing.assert_close(
            triton_rows.normalizers(p, change), torch_rows.normalizers(p, change), rtol=1e-6, atol=1e-6
        )
        torch.testing.assert_close(
            triton_rows.sums(p, change, given, middles=True, difference=True),
            torch_rows.sums(p.double(), change.double(), given, middles=True, difference=True),
            rtol=3e-5,
            atol=1e-5,
        )
        by_change, exact = [p.clone(), change.clone()], [p.double(), change.double()]
        triton_rows.gradients(*by_change, given, *coefficients, difference=True)
        torch_rows.gradients(*exact, given, *coefficients, difference=True)
        for narrow, wide in zip(by_change, exact, strict=True):
            torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-5)
    only_p = [p.clone(), q.clone()]
    triton_rows.gradients(*only_p, given, coefficients[0], None)
    assert torch.equal(only_p[1], q)
    torch.testing.assert_close(only_p[0], got[0], rtol=0, atol=0, equal_nan=True)


if __name__ == "__main__":
    for arguments in itertools.product((1, 2, 7, 1024, 1100), (3.0, 0.1, 1e-3)):
        compare(*arguments)
    compare(1100, 0.1, finite=True)
    p, _ = case(1100, 1.0)
    top = torch_rows.normalizers(p)
    equal = torch.stack([top[:, 0], top[:, 0] + top[:, 1]] * 2, dim=1)
    assert (triton_rows.sums(p, p.clone(), equal, middles=True)[:, [1, 2, 3, 4, 7]] == 0).all()
    print("equal")
