"""Where to cut a model so that its attentions can run elsewhere (Lamina, 2405.01814, section 4.2).

``graph`` and ``mincut`` are plain Python over plain data; ``capture`` and ``run`` need torch and transformers.
"""
