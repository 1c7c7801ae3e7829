"""Reinforcement-learning and preference losses with a KL penalty towards a reference policy."""
