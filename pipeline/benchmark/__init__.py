"""Images and codecs in; rates, distances, times and a report out."""
