"""The KL penalties whose expected gradient is the gradient of another KL, and the penalties to use instead."""

__all__ = ["gradient_mismatch"]


def gradient_mismatch(direction: str, estimator: str, placement: str, horizon: str, sampler: str) -> str | None:
    """Explains how the expected gradient of a penalty differs from the gradient of the KL that it names.

    The arguments are the options of `KLPenalty`. With w = policy/old and L = log(policy/ref) at the sampled token,
    k1 = L, k2 = L^2/2 and k3 = phi(-L), where phi(d) = e^d - 1 - d.

    Args:
        direction: "reverse" or "forward".
        estimator: "exact", "k1", "k2" or "k3".
        placement: "loss" or "reward".
        horizon: "token" or "sequence".
        sampler: "policy" or "behaviour".

    Returns:
        None if the gradients agree. Otherwise a message that states the gradient of the penalty and lists the penalties
        with the correct gradient for the same KL and the same samples, the most similar penalties first.

    References:
        Tang and Munos (2025), "On a few pitfalls in KL divergence gradient estimation for RL", for samples of the
        policy itself [tang2025].

        tests/policy/test_penalty.py checks every case by enumeration.

    Example:
        >>> print(gradient_mismatch("reverse", "k1", "loss", "token", "policy"))
        the expected gradient of k1 as a loss is 0: use estimator='exact' or 'k2'; or placement='reward'
    """
    mismatch = _mismatch(direction, estimator, placement, horizon, sampler)
    if mismatch is None:
        return None
    remedies = []
    for where in (placement, "reward" if placement == "loss" else "loss"):
        correct = [name for name in _ESTIMATORS if _mismatch(direction, name, where, horizon, sampler) is None]
        options = [] if where == placement else [f"placement={where!r}"]
        if correct and (where == placement or estimator not in correct):
            options.append(f"estimator={' or '.join(map(repr, correct))}")
        remedies += [" with ".join(options)] if correct else []
    hint = _HINTS.get((direction, estimator, placement, horizon, sampler))
    return f"{mismatch}: use {'; or '.join([*remedies, *([hint] if hint else [])])}"


def _mismatch(direction: str, estimator: str, placement: str, horizon: str, sampler: str) -> str | None:
    """The first half of the message of `gradient_mismatch`."""
    if direction == "forward":
        if placement == "reward":
            return (
                "KL(ref || policy) is not the mean of a fixed quantity over the policy's samples, so subtracting it "
                "from the reward gives a different gradient"
            )
        return _FORWARD_LOSS[sampler].get(estimator)
    if placement == "reward":
        return _REWARD.get(estimator)
    if horizon == "sequence":
        return (
            "a token-level loss of a reverse KL holds the visited prefixes fixed and omits the effect of a token on "
            "later tokens, so its gradient is at best the gradient for horizon='token'"
        )
    return _LOSS[sampler].get(estimator)


_ESTIMATORS = ("exact", "k1", "k2", "k3")
_LOSS = {
    "policy": {
        "k1": "the expected gradient of k1 as a loss is 0",
        "k3": "k3 differentiated as a loss on the policy's own samples descends KL(ref || policy)",
    },
    "behaviour": {"k2": "the gradient of w k2 is not the gradient of a KL"},
}
_REWARD = {
    "k2": "k2 subtracted from the reward does not have the gradient of a KL",
    "k3": "k3 subtracted from the reward has, at its own token, the gradient of KL(policy || ref) - KL(ref || policy)",
}
_FORWARD_LOSS = {
    "policy": {
        "k1": "the expected gradient of k1 as a loss is 0",
        "k2": "k2 as a loss on the policy's own samples descends KL(policy || ref) of the next token",
    },
    "behaviour": {
        "k1": "w k1 as a loss descends KL(policy || ref) of the next token",
        "k2": "the gradient of w k2 is not the gradient of a KL",
    },
}
_OWN_RATIO = "sampler='behaviour' with old_log_prob=log_prob.detach(), which differentiates w k3"
_HINTS = {
    ("reverse", "k3", "loss", "token", "policy"): f"{_OWN_RATIO}; or direction='forward', which names that KL",
    ("forward", "k2", "loss", "token", "policy"): "direction='reverse', which names that KL",
    ("forward", "k1", "loss", "token", "behaviour"): "direction='reverse', which names that KL",
}
