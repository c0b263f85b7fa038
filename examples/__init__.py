"""Small programs on the package, each with a README that says how to run it. Nothing of the package imports them."""
