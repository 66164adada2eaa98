"""From a choice to a sealed, certified bundle."""
