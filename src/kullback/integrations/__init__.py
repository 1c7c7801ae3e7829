"""Third-party libraries, one a file: what Kullback needs of each, and what it adds to them."""
