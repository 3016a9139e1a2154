"""The type checker that `moe_course/__init__.py` puts behind the signatures of `moe_course.layers`."""

from beartype import BeartypeConf, beartype

# An int where a float is asked for is right, as everywhere in Python: PEP 484's numeric tower.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
