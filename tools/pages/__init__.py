"How the documentation is made from the notebooks; `tools/docs.py` is the command."
