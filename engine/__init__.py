"""How to run: the loop, checkpoints, optimisers, distribution, randomness. Knows no method and no protocol."""
