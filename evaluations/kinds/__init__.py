"""The evaluations: one file for each ``kind`` of protocol, with its settings (``Head``), itself (``KIND``), ``plan``, ``check``, ``run``."""
