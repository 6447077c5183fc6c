"""Checkpoint in, MLX folder out."""
