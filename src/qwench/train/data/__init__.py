"""Seeded generators of the embedded model's training and evaluation samples; one file per skill."""
