"""Fast implementations of KL(p || q) for arrays in memory, behind one dispatch."""
