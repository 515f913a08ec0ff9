"""The directory file: organizations, users and templates as YAML, validated in full before anything is applied.

``run.py`` is the ``run`` of a template version, which the runner follows too. ``store/directory_apply.py`` applies the
file.
"""
