"""Text to token ids and back: vocabularies, chat templates, streaming.

The libraries behind it are imported when a file needs them.
"""

from .detokenizer import StreamingDetokenizer
from .tokenizer import Tokenizer, load_tokenizer

__all__ = ["StreamingDetokenizer", "Tokenizer", "load_tokenizer"]
