"""Learned codecs: a picture and its prompt in, a bitstream out, and back."""
