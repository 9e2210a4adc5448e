"""Loss, metrics, checkpoint and the one training loop."""
