"""Mathematics of clustering methods: pure functions of tensors, each also in a streaming and a distributed form."""
