"""Plans, masking, cutting, repair."""
