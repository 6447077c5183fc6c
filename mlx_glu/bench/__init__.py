"""Timings of one feed-forward layer and of whole models: see README.md here."""
