"""Training: targets, losses, schedule, the loop, checkpoints and the run folder."""
