"""What one command does from start to end: study (search and export share it), export, search."""
