"""Seeded recipes that make the small weights in `models/data`, and fine-tune larger ones."""
