"""Plans, masking, cutting."""
