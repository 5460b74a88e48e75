"""Reading and writing studies, part by part."""
