"""Mathematics of clustering methods: pure functions of tensors, each also in a streaming and a distributed form.

Where rows are spread over processes a function takes ``world`` (``Processes`` of engine/dist.py): all processes, this one alone,
or a group of them.
"""
