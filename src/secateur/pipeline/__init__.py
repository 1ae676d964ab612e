"""The main job, as a readable sequence of the steps of the floors below."""
