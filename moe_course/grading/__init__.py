"""Grades a class's notebooks: submission → sandbox → verdict → feedback.

`run.grade` is the way in. Student code runs in processes of `inside`, which hold neither the references nor any other
submission; what they send back is data, and it is compared here, with the code behind the learner's `check`.
"""
