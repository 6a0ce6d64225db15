"""The Weights & Biases sink: rows and media of one W&B run, online or offline."""
