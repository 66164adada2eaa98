"""One description, one forward pass, one adapter per family."""
