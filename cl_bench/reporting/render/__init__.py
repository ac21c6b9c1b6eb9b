"""From charts as data to pictures (matplotlib) and interactive plots (plotly)."""
