"""Codecs that we did not write, and ours, behind one interface: see `codec.py`."""
