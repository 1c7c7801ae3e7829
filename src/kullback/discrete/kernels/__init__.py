"""Fast implementations of the KL divergence of arrays, behind one dispatch."""
