"""Fit a normal distribution to a bimodal target: the forward fit covers both modes, the reverse fit selects a mode."""

from kullback import fit_forward, fit_reverse
from kullback.families import Normal, NormalMixture

target = NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])

forward = fit_forward(Normal, target=target)
fitted = forward.distribution
print("argmin KL(target || normal), which covers both modes:")
print(f"  loc {float(fitted.loc):.3f}, scale {float(fitted.scale):.3f}, KL {forward.kl:.6f} nats")

reverse = fit_reverse(Normal, target=target)
print("all local minima of KL(normal || target), each on one mode except the last:")
for minimum in reverse.minima:
    fitted = minimum.distribution
    print(f"  loc {float(fitted.loc):.3f}, scale {float(fitted.scale):.4f}, KL {minimum.kl:.6f} nats")
