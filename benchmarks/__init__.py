"""How fast this project is beside others; README.md says how to run it. Nothing of the package imports it."""
