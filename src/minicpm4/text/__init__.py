"""Text to token ids and back: tokenizers of every kind, chat templates, streams of text, stop strings."""

from minicpm4.text.chat import ChatOptions, encode_chat
from minicpm4.text.chat_template import ChatTemplates
from minicpm4.text.load import load_gguf_tokenizer, load_tokenizer
from minicpm4.text.stop_matcher import StopMatcher
from minicpm4.text.template_source import templates_of_folder, templates_of_gguf
from minicpm4.text.text_stream import TextStream
from minicpm4.text.tokenizer import Tokenizer

__all__ = [
    "ChatOptions",
    "ChatTemplates",
    "StopMatcher",
    "TextStream",
    "Tokenizer",
    "encode_chat",
    "load_gguf_tokenizer",
    "load_tokenizer",
    "templates_of_folder",
    "templates_of_gguf",
]
