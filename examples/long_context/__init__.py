"""A small model learns to look far back, first densely, then with InfLLM v2; README.md is the recipe."""
