"""A few words of a user in, a workflow of their own out."""
