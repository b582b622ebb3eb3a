"""Trainers of classifier heads: many linear heads at once, one head by SGD, classifiers of several layers, whole networks."""
