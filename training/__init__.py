"""The training scripts, the demo and their options."""
