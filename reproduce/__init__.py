"""Pre-training: one engine, one file per method. `python -m reproduce ID` or `reproduce.launch.pretrain(ID)`."""
