"""Which KL penalties have another KL's gradient, and what to take instead."""

__all__ = ["refusal"]


def refusal(direction: str, estimator: str, placement: str, horizon: str, sampler: str) -> str | None:
    """Why the expected gradient of such a penalty is not that of its KL, and whose is; None where it is.

    What to take instead is of the same KL on the same samples: all that is right there, the nearest first. Here
    k1 = L = log policy/ref at the sampled token, k2 = L^2/2, k3 = phi(-L), and w = policy/old.

    Source: [tang2025] for samples of the policy; all by enumeration in tests/policy/test_penalty.py.

    Example:
        >>> print(refusal("reverse", "k1", "loss", "token", "policy"))
        the expected gradient of k1 in a loss is 0: take estimator='exact' or 'k2'; or placement='reward'
    """
    wrong = _wrong(direction, estimator, placement, horizon, sampler)
    if wrong is None:
        return None
    remedies = []
    for where in (placement, "reward" if placement == "loss" else "loss"):
        right = [one for one in _ESTIMATORS if _wrong(direction, one, where, horizon, sampler) is None]
        named = [] if where == placement else [f"placement={where!r}"]
        if right and (where == placement or estimator not in right):
            named.append(f"estimator={' or '.join(map(repr, right))}")
        remedies += [" with ".join(named)] if right else []
    hint = _HINTS.get((direction, estimator, placement, horizon, sampler))
    return f"{wrong}: take {'; or '.join([*remedies, *([hint] if hint else [])])}"


def _wrong(direction: str, estimator: str, placement: str, horizon: str, sampler: str) -> str | None:
    if direction == "forward":
        if placement == "reward":
            return (
                "KL(ref || policy) is no mean over the policy's samples of something fixed, so that subtracting it "
                "from the reward has another gradient"
            )
        return _FORWARD_LOSS[sampler].get(estimator)
    if placement == "reward":
        return _REWARD.get(estimator)
    if horizon == "sequence":
        return (
            "a reverse KL in a loss over tokens holds the visited prefixes fixed, and misses that a token changes "
            "which later ones come: its gradient is at best that of horizon='token'"
        )
    return _LOSS[sampler].get(estimator)


_ESTIMATORS = ("exact", "k1", "k2", "k3")
_LOSS = {
    "policy": {
        "k1": "the expected gradient of k1 in a loss is 0",
        "k3": "k3 differentiated as a loss on the policy's own samples descends KL(ref || policy)",
    },
    "behaviour": {"k2": "the gradient of w k2 is no KL's"},
}
_REWARD = {
    "k2": "k2 subtracted from the reward has no KL's gradient",
    "k3": "k3 subtracted from the reward has at its own token the gradient of KL(policy || ref) - KL(ref || policy)",
}
_FORWARD_LOSS = {
    "policy": {
        "k1": "the expected gradient of k1 in a loss is 0",
        "k2": "k2 in a loss on the policy's own samples descends KL(policy || ref) of the next token",
    },
    "behaviour": {
        "k1": "w k1 in a loss descends KL(policy || ref) of the next token",
        "k2": "the gradient of w k2 is no KL's",
    },
}
_OWN_RATIO = "sampler='behaviour' with old_log_prob=log_prob.detach(), which differentiates w k3"
_HINTS = {
    ("reverse", "k3", "loss", "token", "policy"): f"{_OWN_RATIO}; or direction='forward', which it is",
    ("forward", "k2", "loss", "token", "policy"): "direction='reverse', which it is",
    ("forward", "k1", "loss", "token", "behaviour"): "direction='reverse', which it is",
}
