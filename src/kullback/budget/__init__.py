"""KL budgets: the controller KLBudget, published controllers of beta, and the step that applies them to weights."""
