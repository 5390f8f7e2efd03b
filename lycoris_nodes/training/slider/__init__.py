"""The data that Train LyCORIS Slider trains on: guides between prompts, or opposed pictures, at strengths of
both signs."""
