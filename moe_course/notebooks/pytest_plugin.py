"""An early pytest plugin (`-p moe_course.notebooks.pytest_plugin`): keeps two seconds out of every run with nbval.

Importing it imports `moe_course`, which blocks the slow optional import of jsonschema before nbval loads that.
A conftest is read too late.
"""
