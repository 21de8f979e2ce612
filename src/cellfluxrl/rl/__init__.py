"""Post-training: rollouts, advantages, objectives, the trainer; it sees tensors and no images."""
