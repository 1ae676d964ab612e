"""Programs, typed dimensions, and the groups read off them."""
