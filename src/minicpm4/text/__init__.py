"""Text to token ids and back: tokenizers of every kind, chat templates, streams of text, stop strings."""

from minicpm4.text.chat import encode_chat
from minicpm4.text.chat_template import ChatTemplate
from minicpm4.text.load import load_gguf_tokenizer, load_tokenizer
from minicpm4.text.stop_matcher import StopMatcher
from minicpm4.text.template_source import template_of_folder, template_of_gguf
from minicpm4.text.text_stream import TextStream
from minicpm4.text.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "StopMatcher",
    "TextStream",
    "Tokenizer",
    "encode_chat",
    "load_gguf_tokenizer",
    "load_tokenizer",
    "template_of_folder",
    "template_of_gguf",
]
