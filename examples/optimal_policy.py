"""Compute the best policies under a KL constraint exactly, and compare best-of-n sampling with them."""

import numpy as np

from kullback import best_of_n_policy, tilt_to_budget

reference = np.array([0.4, 0.3, 0.2, 0.1])
reward = np.array([0.0, 0.2, 0.5, 1.0])

print("budget  beta     expected reward  policy")
for budget in (0.05, 0.2, 0.5, 1.0):
    optimum = tilt_to_budget(reference, reward, budget)
    expected = optimum.policy @ reward
    print(f"{budget:6.2f}  {float(optimum.beta):.4f}  {expected:15.4f}  {np.round(optimum.policy, 3)}")

print("best of n: expected reward, KL, and the largest reward at that KL")
for n in (2, 4, 16):
    best = best_of_n_policy(reference, reward, n)
    bound = tilt_to_budget(reference, reward, float(best.kl)).policy @ reward
    print(f"{n:4d}  {best.expected_reward:.4f}  {best.kl:.4f} nats  {bound:.4f}")
