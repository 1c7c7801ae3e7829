"""Comparison of two language models over a corpus: statistics, and the file of base log-probabilities of llama.cpp."""
