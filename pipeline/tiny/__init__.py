"""Embedded models: real pipelines, small enough to run anywhere in seconds."""
