"""The toy tokenizer for the tests of this folder."""

from tests.toy_tokenizer import toy_tokenizer, write_tokenizer

__all__ = ["toy_tokenizer", "write_tokenizer"]
