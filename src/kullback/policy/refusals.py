"""Which KL penalties have another KL's gradient, and what to take instead."""

from kullback.errors import KullbackError

__all__ = ["PenaltyError", "refusal"]


class PenaltyError(KullbackError, ValueError):
    """A KL penalty whose gradient would be another's, or that was not given what it needs."""


def refusal(direction: str, estimator: str, placement: str, horizon: str, sampler: str) -> str | None:
    """Why the expected gradient of such a penalty is not that of its KL, and which one's is; None where it is.

    Here k1 = L = log policy/ref at the sampled token, k2 = L^2/2, k3 = phi(-L), and w = policy/old.

    Source: [tang2025] for samples of the policy; all by enumeration in tests/policy/test_penalty.py.

    Example:
        >>> refusal("reverse", "k1", "loss", "token", "policy")
        "the expected gradient of k1 in a loss is 0: take estimator='k2' or 'exact', or placement='reward'"
    """
    if direction == "forward":
        return _forward(estimator, placement)
    if placement == "reward":
        return _REWARD.get(estimator)
    if horizon == "sequence":
        return (
            "a reverse KL in a loss over tokens holds the visited prefixes fixed, and misses that a token changes "
            "which later ones come: its gradient is that of horizon='token'; for the sequence's take "
            "placement='reward' with estimator='exact' or 'k1'"
        )
    return (_LOSS if sampler == "policy" else _WEIGHTED_LOSS).get(estimator)


def _forward(estimator: str, placement: str) -> str | None:
    if placement == "reward":
        return (
            "KL(ref || policy) is no mean over the policy's samples of something fixed, so that subtracting it from "
            "the reward has another gradient: take placement='loss'"
        )
    return _FORWARD_LOSS.get(estimator)


_LOSS = {
    "k1": "the expected gradient of k1 in a loss is 0: take estimator='k2' or 'exact', or placement='reward'",
    "k3": "k3 differentiated as a loss on the policy's own samples descends KL(ref || policy): take estimator='k2' or "
    "'exact'; or sampler='behaviour' with old_log_prob=log_prob.detach(), which differentiates w k3; or say "
    "direction='forward', which it is",
}
_WEIGHTED_LOSS = {
    "k2": "the gradient of w k2 is no KL's: take estimator='k1' or 'k3', whose w k1 and w k3 have the right one, or "
    "'exact'",
}
_REWARD = {
    "k2": "k2 subtracted from the reward has no KL's gradient: take estimator='k1' or 'exact', or placement='loss'",
    "k3": "k3 subtracted from the reward has the gradient of KL(policy || ref) - KL(ref || policy): take "
    "estimator='k1' or 'exact', or placement='loss'",
}
_FORWARD_LOSS = {
    "k1": "the expected gradient of k1 in a loss is 0, or that of KL(policy || ref) where w weighs it: for "
    "KL(ref || policy) take estimator='k3' or 'exact'",
    "k2": "k2 in a loss descends KL(policy || ref): take estimator='k3' or 'exact', or say direction='reverse', which "
    "it is",
}
