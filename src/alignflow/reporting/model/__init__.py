"""What the report page shows, as data: frozen models that read and write JSON, a file a part."""

from alignflow.reporting.model.data import (
    DatasetSummary,
    DataSource,
    ExpectationOutcome,
    LeakRow,
    ReasonCount,
    RefusedRow,
)
from alignflow.reporting.model.fields import (
    MODEL_LABELS,
    ROLE_LABELS,
    ROLES,
    Interval,
    ModelRole,
    Text,
)
from alignflow.reporting.model.judges import AnswerJudgeSummary, JudgeSummary
from alignflow.reporting.model.lineage import Lineage, LineageEdge, LineageNode
from alignflow.reporting.model.links import Links
from alignflow.reporting.model.report import ModelComparison, ReportData
from alignflow.reporting.model.samples import Answer, Message, Sample
from alignflow.reporting.model.scores import (
    Difference,
    Distribution,
    GroupScores,
    ScoreRow,
    WinRate,
    WorstItem,
)
from alignflow.reporting.model.stages import StageRecord
from alignflow.reporting.model.training import (
    CurvePoint,
    RefusedRecord,
    TokenRow,
    TrainingCurve,
    TrainingRows,
)
from alignflow.reporting.model.verdict import RuleOutcome, VerdictSummary

__all__ = [
    "MODEL_LABELS",
    "ROLES",
    "ROLE_LABELS",
    "Answer",
    "AnswerJudgeSummary",
    "CurvePoint",
    "DataSource",
    "DatasetSummary",
    "Difference",
    "Distribution",
    "ExpectationOutcome",
    "GroupScores",
    "Interval",
    "JudgeSummary",
    "LeakRow",
    "Lineage",
    "LineageEdge",
    "LineageNode",
    "Links",
    "Message",
    "ModelComparison",
    "ModelRole",
    "ReasonCount",
    "RefusedRecord",
    "RefusedRow",
    "ReportData",
    "RuleOutcome",
    "Sample",
    "ScoreRow",
    "StageRecord",
    "Text",
    "TokenRow",
    "TrainingCurve",
    "TrainingRows",
    "VerdictSummary",
    "WinRate",
    "WorstItem",
]
