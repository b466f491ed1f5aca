"""What jobs share: log, code digest, lineage, and the checks before the first job."""

__all__ = [
    "annotation_checks",
    "code",
    "costs",
    "job",
    "lineage",
    "records",
    "resolved",
    "software",
    "study",
    "study_checks",
    "study_reading",
    "warnings_of_jobs",
]
