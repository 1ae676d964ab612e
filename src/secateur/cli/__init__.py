"""The command line: recipes, data, commands."""
