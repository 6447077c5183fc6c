"""The later Gemmas: what their tiny checkpoints add to the base."""

#: model_type -> changes to `tiny_checkpoint.BASE`.
FAMILIES: dict[str, dict[str, object]] = {}

#: More cases with Hugging Face's logits: name -> (model_type, changes).
CASES: dict[str, tuple[str, dict[str, object]]] = {}

#: Other layouts of a case's tensors on disk: case -> name -> function of the weights.
LAYOUTS: dict[str, dict[str, object]] = {}
