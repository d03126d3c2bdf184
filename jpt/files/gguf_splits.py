"""How the byte-level vocabularies of GGUF files split text before merging, by the files' own names.

A file names the kind of its splitter (``tokenizer.ggml.pre``) and does not describe it. The kinds
below are those of models of the Llama family; the expressions are those of the models' own
tokenizers, which llama.cpp's equal apart from spelling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_THREE_DIGITS = (rf"{_WORD}|\p{{N}}{{1,3}}|{_REST}",)
_ONE_DIGIT = (rf"{_WORD}|\p{{N}}|{_REST}",)

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS_ALONE = (r"\p{N}", _GPT2)
# No model's own: what llama.cpp does for files that say "default".
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


class Split(NamedTuple):
    """One kind of splitter, with what else goes without saying for its vocabularies."""

    # expressions; each splits what those before it left, matches and rests alike
    patterns: tuple[str, ...]
    whole_words: bool = False  # whether a word that is a token is taken without merging
    add_bos: bool = False  # whether the model reads bos before a text where the file does not say
    normalizes: bool = False  # whether text is brought to Unicode's composed form (NFC) first

    def build(self) -> PreTokenizer:
        """Builds the splitter; what it gives is spelled in the byte alphabet."""
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import ByteLevel, Sequence
        from tokenizers.pre_tokenizers import Split as SplitBy

        steps = [SplitBy(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=False)])


_LLAMA3 = Split(_THREE_DIGITS, whole_words=True, add_bos=True)

SPLITS = {
    "default": Split(_DEFAULT),
    "gpt-2": Split((_GPT2,)),
    "mellum": Split((_GPT2,)),
    "smollm": Split(_DIGITS_ALONE),
    "starcoder": Split(_DIGITS_ALONE),
    "refact": Split(_DIGITS_ALONE),
    "minerva-7b": Split(_DIGITS_ALONE),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "falcon3": _LLAMA3,
    "smaug-bpe": Split(_THREE_DIGITS),
    "tekken": Split(_TEKKEN, whole_words=True, add_bos=True),
    # Qwen's own tokenizers compose; llama.cpp does not. Other models of this kind do not either.
    "qwen2": Split(_ONE_DIGIT, normalizes=True),
    "deepseek-r1-qwen": Split(_ONE_DIGIT),
    "megrez": Split(_ONE_DIGIT),
}
"""The kinds that are known."""
