"""Numbers and prompts in, the fields of .aigi files of all kinds out, and back."""

from __future__ import annotations

from pipeline import AigiError
from pipeline.learned.prompt import compress_prompt, decompress_prompt
from pipeline.learned.range_coder import DamagedStream

MOST_PROMPT = 4096
"""Bytes of UTF-8."""


def varint(value: int) -> bytes:
    """7 bits a byte, low ones first, at most 4 bytes.

    Raises:
        ValueError: it does not fit.
    """
    if not 0 <= value < 1 << 28:
        raise ValueError(f"{value} does not fit into 28 bits")
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


class Reader:
    """The bytes of a file, read from the left; nothing is copied before its length is checked."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def bytes(self, count: int, what: str) -> bytes:
        """The next bytes; `what` they are, for the message.

        Raises:
            DamagedStream: there are not so many.
        """
        if count > len(self.data) - self.at:
            raise DamagedStream(f"bitstream: cut short in its {what}. Get the file again.")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self, what: str) -> int:
        """The next number.

        Raises:
            DamagedStream: it is none, or has a shorter way to be written.
        """
        value = 0
        for shift in (0, 7, 14, 21):
            (byte,) = self.bytes(1, what)
            value |= (byte & 127) << shift
            if byte < 128:
                if shift and not byte:
                    break  # there is a shorter way to write it
                return value
        raise DamagedStream(f"bitstream: its {what} is no number. Get the file again.")


def pack_prompt(prompt: str) -> bytes:
    """The field of a prompt.

    Raises:
        AigiError: it is longer than 4,096 bytes in UTF-8, or not text.
    """
    try:
        text = prompt.encode()
    except UnicodeEncodeError as error:
        raise AigiError(f"prompt: not text that UTF-8 can hold: {error}") from None
    if len(text) > MOST_PROMPT:
        raise AigiError(
            f"prompt: {len(text):,} bytes in UTF-8; at most {MOST_PROMPT:,} are stored. Shorten "
            "it: text encoders read some 50 words."
        )
    if not text:
        return varint(0)
    coded = compress_prompt(text)
    if len(coded) + len(varint(len(coded))) < len(text):
        return varint(2 * len(text)) + varint(len(coded)) + coded
    return varint(2 * len(text) + 1) + text


def read_prompt(reader: Reader) -> str:
    """The prompt of a field that `pack_prompt` wrote.

    Raises:
        DamagedStream: it is none.
    """
    head = reader.varint("prompt")
    length, plain = head >> 1, head & 1
    if length > MOST_PROMPT:
        raise DamagedStream(
            f"bitstream: claims a prompt of {length:,} bytes; at most {MOST_PROMPT:,} are stored."
        )
    if plain:
        text = reader.bytes(length, "prompt")
    else:
        coded = reader.bytes(reader.varint("prompt"), "prompt") if length else b""
        text = decompress_prompt(coded, length)
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise DamagedStream("bitstream: its prompt is not text. Get the file again.") from None
