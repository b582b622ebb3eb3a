"""The record: measured numbers as files, and everything that is derived from them (tables, figures, comparisons).

``results.record`` is a leaf: it imports nothing of the project, so evaluations may write records without knowing more.
"""
