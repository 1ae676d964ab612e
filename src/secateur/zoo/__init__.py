"""Small networks for the demo and the recipes."""
