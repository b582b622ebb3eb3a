"""Trainers of what is put on a backbone: many linear heads at once, one head by SGD, classifiers of several layers, whole networks."""
