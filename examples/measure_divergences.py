"""Measure KL divergences of arrays, of parametric distributions, and of a pair without a closed form."""

import numpy as np
import scipy.stats

import kullback as kk
from kullback.families import Normal

# Probabilities: KL(p || q) in nats and in bits, and the contribution of each event.
p = np.array([0.4, 0.3, 0.2, 0.1])
q = np.array([0.3, 0.3, 0.3, 0.1])
nats = kk.kl_probs(p, q)
print(f"KL(p || q) = {nats:.6f} nats = {kk.nats_to_bits(nats):.6f} bits")
print("contributions of the events:", np.round(kk.kl_terms(p, q), 6))

# The value is infinite where q has no probability, and accurate where p and q are nearly equal.
print("p outside the support of q:", kk.kl_probs([0.5, 0.5], [1.0, 0.0]))
logits = np.float32([1.0, 2.0, 3.0])
print(f"nearly equal logits in float32: {kk.kl_logits(logits, logits + np.float32([0, 0, 1e-3])):.4e} nats")

# Distributions: exact by a closed form, or an estimate with an error bound.
print("normal distributions:", kk.kl(Normal(loc=0.0, scale=1.0), Normal(loc=1.0, scale=2.0)))
estimate = kk.measure(scipy.stats.norm(), scipy.stats.t(df=5))
print(f"normal against Student's t: {estimate.value:.10f} ({estimate.status}, error below {estimate.error:.0e})")
