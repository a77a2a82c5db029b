"""Captions in, a release out: the building side, one module for each table."""
