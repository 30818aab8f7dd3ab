"""The figures of the DenseNet papers, drawn from published numbers and from our own networks."""
