"""Tables, plots and one HTML file."""
