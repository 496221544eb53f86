"""Reports about a period: `data` gathers the figures, `svg` plots them, `html` writes the page."""
