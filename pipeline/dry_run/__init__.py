"""A workflow in, tables of what it would read, make, store and download out; nothing is made."""
