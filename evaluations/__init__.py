"""Judging models: every protocol one YAML file, every evaluation one Python file, every number one record.

from evaluations.measure import evaluate
evaluate("knn_digits", "simclr_digits", {"pretrain_seed": 0})      # the path of the record
"""
