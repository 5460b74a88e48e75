"""Forward passes in which each block runs on the tokens that it keeps."""
