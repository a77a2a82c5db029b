"""Sizes in, the networks of learned codecs out: one file a family, of blocks that all share."""
