"""The process that renders chat templates: Jinja2's sandbox, text that remembers where it came from, and confinement.

Started by `text.template_worker` as `python -m rendering`, with only this folder's parent and Jinja2 to import from. It must not
import anything else of this package.
"""
