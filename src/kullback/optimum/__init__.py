"""The exact optimum of KL-regularised control: tilted policies, best of n, Markov decision processes."""
