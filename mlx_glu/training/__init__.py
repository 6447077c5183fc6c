"""Layers to train: gated and ungated blocks, their initialisation and their costs."""
