"""Network functions that need help to take part (see ``README.md`` beside this file).

state/   moving what a function knows about a session to another instance of it
"""
