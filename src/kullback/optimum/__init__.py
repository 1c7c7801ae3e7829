"""The exact optimum of KL-regularised control: tilted policies, best-of-n policies and Markov decision processes."""
