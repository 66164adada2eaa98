"""What a person sees: the table on the terminal, the plots, the page."""
