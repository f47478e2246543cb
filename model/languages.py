"""The languages Whisper was trained on, in the order of their tokens, and what people call them.

A table and one look-up; it refuses to know token ids, which depend on the vocabulary (`tokenizer.py`).
"""

from __future__ import annotations

import difflib

from model.errors import UsageError

# Code → English name. The order is that of the language tokens and cannot change. Source: openai/whisper,
# tokenizer.py. Cantonese, the last, exists from large-v3 on.
LANGUAGES: dict[str, str] = {
    "en": "English",
    "zh": "Chinese",
    "de": "German",
    "es": "Spanish",
    "ru": "Russian",
    "ko": "Korean",
    "fr": "French",
    "ja": "Japanese",
    "pt": "Portuguese",
    "tr": "Turkish",
    "pl": "Polish",
    "ca": "Catalan",
    "nl": "Dutch",
    "ar": "Arabic",
    "sv": "Swedish",
    "it": "Italian",
    "id": "Indonesian",
    "hi": "Hindi",
    "fi": "Finnish",
    "vi": "Vietnamese",
    "he": "Hebrew",
    "uk": "Ukrainian",
    "el": "Greek",
    "ms": "Malay",
    "cs": "Czech",
    "ro": "Romanian",
    "da": "Danish",
    "hu": "Hungarian",
    "ta": "Tamil",
    "no": "Norwegian",
    "th": "Thai",
    "ur": "Urdu",
    "hr": "Croatian",
    "bg": "Bulgarian",
    "lt": "Lithuanian",
    "la": "Latin",
    "mi": "Maori",
    "ml": "Malayalam",
    "cy": "Welsh",
    "sk": "Slovak",
    "te": "Telugu",
    "fa": "Persian",
    "lv": "Latvian",
    "bn": "Bengali",
    "sr": "Serbian",
    "az": "Azerbaijani",
    "sl": "Slovenian",
    "kn": "Kannada",
    "et": "Estonian",
    "mk": "Macedonian",
    "br": "Breton",
    "eu": "Basque",
    "is": "Icelandic",
    "hy": "Armenian",
    "ne": "Nepali",
    "mn": "Mongolian",
    "bs": "Bosnian",
    "kk": "Kazakh",
    "sq": "Albanian",
    "sw": "Swahili",
    "gl": "Galician",
    "mr": "Marathi",
    "pa": "Punjabi",
    "si": "Sinhala",
    "km": "Khmer",
    "sn": "Shona",
    "yo": "Yoruba",
    "so": "Somali",
    "af": "Afrikaans",
    "oc": "Occitan",
    "ka": "Georgian",
    "be": "Belarusian",
    "tg": "Tajik",
    "sd": "Sindhi",
    "gu": "Gujarati",
    "am": "Amharic",
    "yi": "Yiddish",
    "lo": "Lao",
    "uz": "Uzbek",
    "fo": "Faroese",
    "ht": "Haitian Creole",
    "ps": "Pashto",
    "tk": "Turkmen",
    "nn": "Nynorsk",
    "mt": "Maltese",
    "sa": "Sanskrit",
    "lb": "Luxembourgish",
    "my": "Myanmar",
    "bo": "Tibetan",
    "tl": "Tagalog",
    "mg": "Malagasy",
    "as": "Assamese",
    "tt": "Tatar",
    "haw": "Hawaiian",
    "ln": "Lingala",
    "ha": "Hausa",
    "ba": "Bashkir",
    "jw": "Javanese",
    "su": "Sundanese",
    "yue": "Cantonese",
}

# Other names of the same tokens. `jv` is what ISO 639-1 calls Javanese today; Whisper kept the older `jw`.
ALIASES: dict[str, str] = {
    "burmese": "my",
    "castilian": "es",
    "flemish": "nl",
    "haitian": "ht",
    "jv": "jw",
    "letzeburgesch": "lb",
    "mandarin": "zh",
    "moldavian": "ro",
    "moldovan": "ro",
    "panjabi": "pa",
    "pushto": "ps",
    "sinhalese": "si",
    "valencian": "ca",
}

# Written without spaces between words: words are cut at characters, and errors are counted per character.
UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})

_CODES = {code: code for code in LANGUAGES}
_CODES |= {name.lower(): code for code, name in LANGUAGES.items()} | ALIASES


def language_code(name_or_code: str) -> str:
    """The code of a language given by code, English name or alias, in any case.

    Raises: `UsageError` when Whisper does not know it; the sentence names the closest that it does.
    """
    asked = " ".join(name_or_code.lower().split())
    if asked in _CODES:
        return _CODES[asked]
    close = [_CODES[match] for match in difflib.get_close_matches(asked, _CODES, n=1)]
    hint = f" (closest: {LANGUAGES[close[0]]}, {close[0]})" if close else ""
    raise UsageError(
        f"The language {name_or_code!r} is not one of Whisper's {len(LANGUAGES)}{hint}: "
        f"give an ISO 639 code such as en, fr or ja, or an English name such as French."
    )
