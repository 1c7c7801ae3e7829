"""HTML pages: the report of training runs and the interactive explorer, with the scripts and styles that draw them."""
