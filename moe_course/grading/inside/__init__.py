"""What runs inside the sandbox, next to student code. It imports nothing that knows an answer.

`stage.py` copies this package, and the few files of `moe_course.exercises` that it needs, to a folder of their own:
nothing else of the course exists where student code runs.
"""
