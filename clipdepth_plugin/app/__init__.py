"""A web page that shows depth: ``clipdepth app``.

``model.py`` and ``session.py`` know no web; ``page.py`` and ``serving.py`` are Gradio's.
"""
