"""Checkpoints on disk, whatever wrote them, read with suspicion."""
