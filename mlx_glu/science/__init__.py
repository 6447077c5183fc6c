"""The claims about gating as experiments that may say no; see README.md."""
