"""What a model predicts, and how much of it a quantization costs."""
