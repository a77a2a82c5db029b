"""HTML pages for people: the report of a run, and the review of its images by hand."""
