"""Thin hooks that feed a bus from PyTorch; each is one line, and costs next to nothing.

The rest of metricbus knows a tensor when it sees one, and never imports torch.
"""
