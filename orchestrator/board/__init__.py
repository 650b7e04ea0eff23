"""A local web page over a store: runs, live or finished, and what can be asked of them."""
