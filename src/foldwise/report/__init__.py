"""Everything that draws: pages and figures."""
